"""Evaluation of a policy on held-out prompts: the same prompts and seeds every time, so that before and after are paired."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..algorithms.estimate import token_kl
from ..batch import Batch
from ..config import RewardsConfig
from ..config.jobs import EvaluateRL
from ..data.encode import completion_text
from ..quality import intervals
from ..rewards.reward import combine
from ..run.atomic import replace_file
from ..run.reader import evaluation_files, evaluation_step

SEED_STEP = (1 << 32) - 1  # no training step has this number


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences after - before with its bootstrap 95 % interval."""

    before: float
    after: float
    low: float
    high: float


def table(
    batch: Batch, terms: list[Any], rewards: RewardsConfig, statistics: Any, prompts: pa.Table, tokenizer: Any
) -> pa.Table:
    """One row a completion: example_id, sample, prompt, completion, reward, each part, KL to the reference in nats, length."""
    names = [t.name for t in terms]
    own = [names.index(t.name) for t in rewards.terms]
    rows = {int(i): n for n, i in enumerate(prompts["example_id"].to_pylist())}
    columns: dict[str, Any] = {
        "example_id": batch.example_id,
        "sample": batch.sample,
        "prompt": [_text(prompts["prompt"][rows[int(i)]].as_py()) for i in batch.example_id],
        "completion": [
            completion_text(t, int(n), tokenizer) for t, n in zip(batch.sequences(), batch.prompt_length, strict=True)
        ],
        "reward": combine(batch.reward_parts[:, own], rewards, statistics or {}),
    }
    columns |= {f"part/{name}": batch.reward_parts[:, i] for i, name in enumerate(names)}
    if batch.has("ref_log_probs"):
        kl = token_kl(batch).numpy()
        columns["kl"] = np.add.reduceat(kl, batch.offsets[:-1])
    columns["length"] = batch.lengths - batch.prompt_length
    columns["truncated"] = batch.truncated
    return pa.table(columns)


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt)


def write(file: Path, rows: pa.Table, config: EvaluateRL) -> None:
    """Replaces the file in one step; what was asked goes into the schema's metadata."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(file) as part:
        pq.write_table(rows.replace_schema_metadata({"asked": _asked(config)}), part)


def prune(run_dir: Path, step: int, config: EvaluateRL) -> list[int]:
    """Removes evaluations that a run which goes on from ``step`` makes again, and those of other prompts or terms.

    Returns the steps of those that remain.
    """
    for file in evaluation_files(run_dir):
        same = (pq.read_schema(file).metadata or {}).get(b"asked") == _asked(config).encode()
        if evaluation_step(file) > step or (config.data is not None and not same):
            file.unlink()
    return [evaluation_step(file) for file in evaluation_files(run_dir)]


def _asked(config: EvaluateRL) -> str:
    return config.model_dump_json(include={"data", "greedy", "terms"})


def metrics(rows: pa.Table) -> dict[str, float]:
    """Means of the numeric columns, as evaluate/..."""
    return {f"evaluate/{name}": float(np.nanmean(rows[name].to_numpy())) for name in numeric(rows)}


def numeric(rows: pa.Table) -> list[str]:
    """Columns that are measured: reward, parts, kl, length, truncated."""
    return [n for n in rows.column_names if n not in ("example_id", "sample", "prompt", "completion")]


def first_and_last(run_dir: Path) -> tuple[pa.Table, pa.Table] | None:
    """The earliest and the latest evaluation of a run, or None where there are not two."""
    found = evaluation_files(run_dir)
    return (pq.read_table(found[0]), pq.read_table(found[-1])) if len(found) >= 2 else None


def compare(before: pa.Table, after: pa.Table) -> dict[str, Difference]:
    """Each measured column before and after, paired by (example_id, sample). Raises ValueError for other prompts."""
    for key in ("example_id", "sample"):
        if before[key].to_pylist() != after[key].to_pylist():
            raise ValueError("the two evaluations are not of the same prompts")
    return {name: difference(before[name].to_numpy(), after[name].to_numpy()) for name in numeric(after)}


def difference(before: np.ndarray, after: np.ndarray) -> Difference:
    """The mean paired difference with its interval (quality.intervals.mean)."""
    found = intervals.mean(np.asarray(after, dtype=float) - np.asarray(before, dtype=float))
    return Difference(float(np.nanmean(before)), float(np.nanmean(after)), found.low, found.high)
