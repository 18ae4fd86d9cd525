"""`job: score`: the texts of a dataset with scores, by which another job draws its data or leaves some out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ..actors.placement import Placement, cluster_nodes, plan_placement, worker_demand
from ..config import BadInput, ScoreJob
from ..run.atomic import replace_file
from .kind import JobKind, JobNeeds, Results, RunContext, log_packages

if TYPE_CHECKING:
    from ..actors.group import WorkerGroup
    from ..data.examples import Row, Rows


def needs(job: ScoreJob) -> JobNeeds:
    """Texts and reward terms; no model answers."""
    return JobNeeds(data={"data": job.data}, rewards=job.rewards, packages=log_packages(job.log))


def describe(job: ScoreJob) -> list[str]:
    """The reward workers."""
    return [f"{job.job}: each text by {job.rewards.num_workers} reward worker(s)"]


def run(job: ScoreJob, context: RunContext) -> Results:
    """Writes RUN/scored.jsonl: every row with its score, the weighted sum of the terms, and score_TERM. Returns the mean.

    The dataset is never held whole. Rows without a score (on_error: drop) are left out and counted.
    """
    from ..train.setup import reward_group

    placement = Placement(plan_placement(job.cluster, worker_demand(rewards=job.rewards), cluster_nodes()))
    reward = reward_group(job.rewards, context.run.path, job.cluster, placement, has_policy=False)
    file = context.run.path / "scored.jsonl"
    try:
        reward.broadcast("check")
        with replace_file(file) as part:
            scores = _write_scores(job, reward, part)
            found = scores[~np.isnan(scores)]
            if not len(found):
                raise BadInput(f"none of {len(scores)} texts got a score; see rewards.terms")
    finally:
        reward.kill()
        placement.remove()
    levels = ", ".join(
        f"{q} % {v:.3g}" for q, v in zip((5, 25, 50, 75, 95), np.percentile(found, (5, 25, 50, 75, 95)), strict=True)
    )
    context.console.print(
        f"scored {len(found)} of {len(scores)} texts: mean {found.mean():.3g}, quantiles {levels}: {file}"
    )
    return {"scored": float(len(found)), "score/mean": float(found.mean())}


def _write_scores(job: ScoreJob, reward: WorkerGroup, file: Path) -> np.ndarray:
    """Writes the scored rows to ``file``, a JSON object a line; returns the scores of all rows, NaN for those left out."""
    from ..data import examples
    from ..rewards.reward import combine

    scores = []
    with file.open("w", encoding="utf-8") as out:
        for key, source in examples.named(job.data, "data"):
            for block in examples.blocks(source, key):
                parts = judged(reward, texts(block))
                total = combine(parts, job.rewards, {})
                for row, score, terms in zip(block, total.tolist(), parts.tolist(), strict=True):
                    if not np.isnan(score):
                        named = {f"score_{t.name}": s for t, s in zip(job.rewards.terms, terms, strict=True)}
                        line = json.dumps({**row, "score": score, **named}, ensure_ascii=False, default=str)
                        out.write(f"{line}\n")
                scores.append(total)
    return np.concatenate(scores)


def texts(rows: Rows) -> pa.Table:
    """The rows as terms read them: prompt and completion, or an empty prompt and the text. Raises BadInput where there is neither."""
    from ..data import examples

    found: list[Row] = []
    for i, row in enumerate(rows):
        column = "completion" if "completion" in row else "text"
        rows.require(i, column, *(["prompt"] if column == "completion" else []))
        prompt = row["prompt"] if column == "completion" else ""
        found.append({**row, "prompt": prompt, "completion": rows.text(i, column)})
    return examples.table(rows.changed(found), range(len(rows)))


def judged(reward: WorkerGroup, rows: pa.Table) -> np.ndarray:
    """Scores (n, k), each worker a share; one that dies is replaced, and all of it done again."""
    from ..actors.errors import WorkerLost

    cuts = np.array_split(np.arange(len(rows)), len(reward))
    while True:
        try:
            return np.concatenate(reward.map("judge", [(rows.slice(c[0] if len(c) else 0, len(c)),) for c in cuts]))
        except WorkerLost as lost:
            reward.replace(lost.index)


SCORE = JobKind(needs=needs, describe=describe, run=run)
