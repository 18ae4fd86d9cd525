"""Sample n answers to each prompt, judge them, and keep the good ones as data: best-of-n, rejection sampling, pairs.

Rejection-sampling fine-tuning is a pipeline of this and sft (as in Touvron et al. 2023, arXiv 2307.09288, section 3.2.3).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from ..config import BadInput, SampleJob
from ..quality import intervals
from ..run.atomic import write_text
from ..run.directory import RunDir
from ..train.dispatch import Prompts
from .answers import answers


def run(job: SampleJob, held: RunDir, console: Console) -> dict[str, Any]:
    """Writes RUN/kept.jsonl; returns how much was kept, and the mean reward of all answers and of those kept."""
    rows, prompts = answers(job, job.model, held.path, greedy=False)
    found, best = kept(job, rows, prompts), rows["reward"].to_numpy()
    if not found:
        raise BadInput(
            f"no answer was kept: rewards lie between {np.nanmin(best):.3g} and {np.nanmax(best):.3g}, above is {job.above}, "
            f"keep is {job.keep}; lower above, or take more samples"
        )
    file = held.path / "kept.jsonl"
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found))
    every, chosen = intervals.mean(best), intervals.mean(np.array([row["reward"] for row in found]))
    console.print(
        f"kept {len(found)} of {len(rows)} answers to {len(prompts)} prompts: mean reward {every.mean:.3f} of all, {chosen.mean:.3f} "
        f"of those kept: {file}"
    )
    return {"kept": float(len(found)), "reward/all": every.mean, "reward/kept": chosen.mean}


def kept(job: SampleJob, rows: pa.Table, prompts: Prompts) -> list[dict[str, Any]]:
    """Examples as sft or dpo reads them, with the dataset's other columns and the reward; samples without one are left out."""
    examples = {row.pop("example_id"): row for row in prompts.rows.to_pylist()}
    reward, ids, texts = rows["reward"].to_numpy(), rows["example_id"].to_numpy(), rows["completion"].to_pylist()
    found: list[dict[str, Any]] = []
    for example in dict.fromkeys(ids.tolist()):
        at = np.flatnonzero((ids == example) & ~np.isnan(reward))
        if not len(at):
            continue
        given = examples[example]
        best, worst = at[np.argmax(reward[at])], at[np.argmin(reward[at])]
        if job.keep == "pairs":
            if reward[best] > reward[worst] and _above(job, reward[best]):
                sides = {"chosen": _said(given, texts[best]), "rejected": _said(given, texts[worst])}
                margin = float(reward[best] - reward[worst])
                found.append({**given, **sides, "reward": float(reward[best]), "difference": margin})
            continue
        for i in at if job.keep == "all" else [best]:
            if _above(job, reward[i]):
                found.append({**given, "completion": _said(given, texts[i]), "reward": float(reward[i])})
    return found


def _above(job: SampleJob, reward: float) -> bool:
    return job.above is None or reward > job.above


def _said(example: dict[str, Any], text: str) -> Any:
    """A completion in the form of its prompt: text, or the assistant's message."""
    return text if isinstance(example["prompt"], str) else [{"role": "assistant", "content": text}]
