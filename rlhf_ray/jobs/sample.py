"""`job: sample`: sample n answers to each prompt, judge them, and keep the good ones as data.

Best-of-n, rejection sampling and preference pairs. Rejection-sampling fine-tuning is a pipeline of this and sft
(Touvron et al. 2023, arXiv 2307.09288, section 3.2.3).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..config import BadInput, SampleJob
from ..quality import intervals
from ..run.atomic import write_text
from .generation import describe_generation, generation_needs
from .kind import JobKind, Results, RunContext

if TYPE_CHECKING:
    from ..data.prompts import Prompts


def run(job: SampleJob, context: RunContext) -> Results:
    """Writes RUN/kept.jsonl; returns the number of examples, and the mean reward of all answers and of those kept."""
    from .answers import generate_answers

    answers, prompts = generate_answers(job, job.model, context.run.path, greedy=False)
    examples = select_examples(job, answers, prompts)
    rewards = answers["reward"].to_numpy()
    if not examples:
        raise BadInput(
            f"no answer was kept: rewards lie between {np.nanmin(rewards):.3g} and {np.nanmax(rewards):.3g}, above is "
            f"{job.above}, keep is {job.keep}; lower above, or take more samples"
        )
    file = context.run.path / "kept.jsonl"
    write_text(file, "".join(json.dumps(example, ensure_ascii=False) + "\n" for example in examples))
    mean_all = intervals.mean(rewards).mean
    mean_kept = intervals.mean(np.array([example["reward"] for example in examples])).mean
    context.console.print(
        f"kept {len(examples)} of {len(answers)} answers to {len(prompts)} prompts: mean reward {mean_all:.3f} of all, "
        f"{mean_kept:.3f} of those kept: {file}"
    )
    return {"kept": float(len(examples)), "reward/all": mean_all, "reward/kept": mean_kept}


def select_examples(job: SampleJob, answers: pa.Table, prompts: Prompts) -> list[dict[str, Any]]:
    """Examples as sft or dpo reads them, with the dataset's other columns and the reward.

    An answer without a reward (NaN) is never kept. A pair is kept if its two rewards differ.
    """
    rows = {row.pop("example_id"): row for row in prompts.rows.to_pylist()}
    rewards, ids = answers["reward"].to_numpy(), answers["example_id"].to_numpy()
    texts = answers["completion"].to_pylist()
    examples: list[dict[str, Any]] = []
    for example_id in dict.fromkeys(ids.tolist()):
        indices = np.flatnonzero((ids == example_id) & ~np.isnan(rewards))
        if not len(indices):
            continue
        row = rows[example_id]
        best, worst = indices[np.argmax(rewards[indices])], indices[np.argmin(rewards[indices])]
        if job.keep == "pairs":
            if rewards[best] > rewards[worst] and _is_above(job, rewards[best]):
                sides = {"chosen": _as_prompt(row, texts[best]), "rejected": _as_prompt(row, texts[worst])}
                difference = float(rewards[best] - rewards[worst])
                examples.append({**row, **sides, "reward": float(rewards[best]), "difference": difference})
            continue
        for i in indices if job.keep == "all" else [best]:
            if _is_above(job, rewards[i]):
                completion = _as_prompt(row, texts[i])
                examples.append({**row, "completion": completion, "reward": float(rewards[i])})
    return examples


def _is_above(job: SampleJob, reward: float) -> bool:
    return job.above is None or reward > job.above


def _as_prompt(row: dict[str, Any], text: str) -> Any:
    """A completion in the form of its prompt: text, or the assistant's message."""
    return text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]


SAMPLE = JobKind(needs=generation_needs, describe=describe_generation, run=run)
