"""Evaluation of a policy on held-out prompts.

Prompts and seeds are the same every time, so that evaluations before and after training are paired.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..algorithms.estimate import token_kl
from ..batch import Batch
from ..config import Reward, RewardsConfig
from ..config.jobs import EvaluateRL
from ..data.encode import completion_text
from ..quality import intervals
from ..rewards.normalise import Scales, total_reward, without_dropped
from ..run.atomic import replace_file
from ..run.reader import evaluation_files, evaluation_step

SEED_STEP = (1 << 32) - 1  # no training step has this number


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The mean of paired differences after - before with its bootstrap 95 % interval."""

    before: float
    after: float
    low: float
    high: float


def completions_table(
    batch: Batch,
    *,
    terms: Sequence[Reward],
    rewards: RewardsConfig,
    reward_scales: Scales | None,
    prompts: pa.Table,
    tokenizer: Any,
) -> pa.Table:
    """One row a completion, with its prompt and what was measured of it.

    Columns: example_id, sample, prompt, completion, reward (the total of the terms of ``rewards``), part/TERM of each
    of ``terms`` (the columns of the batch's reward_parts), kl (nats to the reference, if known), length, truncated.
    """
    names = [term.name for term in terms]
    rewarded = [names.index(term.name) for term in rewards.terms]
    row_of = {example_id: row for row, example_id in enumerate(prompts["example_id"].to_pylist())}
    sequences = zip(batch.sequences(), batch.prompt_length.tolist(), strict=True)
    columns: dict[str, Any] = {
        "example_id": batch.example_id,
        "sample": batch.sample,
        "prompt": [_text(prompts["prompt"][row_of[example_id]].as_py()) for example_id in batch.example_id.tolist()],
        "completion": [completion_text(tokens, prompt_length, tokenizer) for tokens, prompt_length in sequences],
        "reward": total_reward(batch.reward_parts[:, rewarded], rewards, reward_scales or {}),
    }
    parts = without_dropped(batch.reward_parts)
    columns |= {f"part/{name}": parts[:, i] for i, name in enumerate(names)}
    if batch.has("ref_log_probs"):
        columns["kl"] = np.add.reduceat(token_kl(batch).numpy(), batch.offsets[:-1])
    columns["length"] = batch.lengths - batch.prompt_length
    columns["truncated"] = batch.truncated
    return pa.table(columns)


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt)


def write_evaluation(file: Path, completions: pa.Table, config: EvaluateRL) -> None:
    """Replaces the file in one step; what was asked for is written into the schema's metadata."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(file) as temporary:
        pq.write_table(completions.replace_schema_metadata({"asked": _asked(config)}), temporary)


def remove_outdated(run_dir: Path, step: int, config: EvaluateRL) -> list[int]:
    """Removes evaluations that a run which continues from ``step`` makes again, and those of other prompts or terms.

    Returns the steps of those that remain.
    """
    for file in evaluation_files(run_dir):
        same = (pq.read_schema(file).metadata or {}).get(b"asked") == _asked(config).encode()
        if evaluation_step(file) > step or (config.data is not None and not same):
            file.unlink()
    return [evaluation_step(file) for file in evaluation_files(run_dir)]


def _asked(config: EvaluateRL) -> str:
    return config.model_dump_json(include={"data", "greedy", "terms"})


def evaluation_metrics(completions: pa.Table) -> dict[str, float]:
    """Means of the measured columns, as evaluate/..."""
    return {
        f"evaluate/{name}": float(np.nanmean(completions[name].to_numpy())) for name in measured_columns(completions)
    }


def measured_columns(completions: pa.Table) -> list[str]:
    """Names of the columns that are measured: reward, parts, kl, length, truncated."""
    described = ("example_id", "sample", "prompt", "completion")
    return [name for name in completions.column_names if name not in described]


def read_first_and_last(run_dir: Path) -> tuple[pa.Table, pa.Table] | None:
    """The earliest and the latest evaluation of a run, or None if there are fewer than two."""
    files = evaluation_files(run_dir)
    return (pq.read_table(files[0]), pq.read_table(files[-1])) if len(files) >= 2 else None


def compare_evaluations(before: pa.Table, after: pa.Table) -> dict[str, Difference]:
    """Each measured column before and after, paired by (example_id, sample).

    Raises ValueError if they are of different prompts.
    """
    for key in ("example_id", "sample"):
        if before[key].to_pylist() != after[key].to_pylist():
            raise ValueError("the two evaluations are not of the same prompts")
    return {name: difference(before[name].to_numpy(), after[name].to_numpy()) for name in measured_columns(after)}


def difference(before: np.ndarray, after: np.ndarray) -> Difference:
    """The mean paired difference (n,) - (n,) with its interval (quality.intervals.mean)."""
    estimate = intervals.mean(np.asarray(after, dtype=float) - np.asarray(before, dtype=float))
    return Difference(
        before=float(np.nanmean(before)), after=float(np.nanmean(after)), low=estimate.low, high=estimate.high
    )
