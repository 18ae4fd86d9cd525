"""`job: score`: the texts of a dataset with scores.

Another job can draw its data by the scores, or leave rows out.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ..actors.placement import worker_demand
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
    """Writes RUN/scored.jsonl: each row with its score (the weighted sum of the terms) and the columns score_TERM.

    Returns the number of rows and the mean score. The dataset is read in blocks. Rows without a score (on_error: drop)
    are left out and counted. Raises BadInput if no row has a score.
    """
    from ..train.workers import Workers, build_reward_terms

    file = context.run.path / "scored.jsonl"
    with Workers(job.cluster, worker_demand(rewards=job.rewards)) as workers, replace_file(file) as temporary:
        reward = workers.start_reward(job.rewards, context.run.path, has_policy=False)
        workers.wait()
        build_reward_terms(reward)
        all_scores = _write_scores(job, reward, temporary)
        scores = all_scores[~np.isnan(all_scores)]
        if not len(scores):
            raise BadInput(f"none of {len(all_scores)} texts got a score; see rewards.terms")
    percents = (5, 25, 50, 75, 95)
    quantiles = zip(percents, np.percentile(scores, percents), strict=True)
    context.console.print(
        f"scored {len(scores)} of {len(all_scores)} texts: mean {scores.mean():.3g}, "
        f"quantiles {', '.join(f'{percent} % {value:.3g}' for percent, value in quantiles)}: {file}"
    )
    return {"scored": float(len(scores)), "score/mean": float(scores.mean())}


def _write_scores(job: ScoreJob, reward: WorkerGroup, file: Path) -> np.ndarray:
    """Writes the scored rows to ``file``, a JSON object a line; returns the scores (n,) of all rows.

    The score of a row that is left out is NaN.
    """
    from ..data import examples
    from ..rewards.columns import columns_by_name
    from ..rewards.normalise import total_reward

    columns = columns_by_name(job.rewards.terms)
    names = [f"score_{term.name}" for term in job.rewards.terms]
    scores = []
    with file.open("w", encoding="utf-8") as lines:
        for key, source in examples.named(job.data, "data"):
            for block in examples.blocks(source, key):
                parts = score_texts(reward, text_table(block, columns))
                totals = total_reward(parts, job.rewards, {})
                for row, score, row_parts in zip(block, totals.tolist(), parts.tolist(), strict=True):
                    if not np.isnan(score):
                        shown = (None if np.isnan(part) else part for part in row_parts)
                        scored_row = {**row, "score": score, **dict(zip(names, shown, strict=True))}
                        lines.write(json.dumps(scored_row, ensure_ascii=False, default=str) + "\n")
                scores.append(totals)
    return np.concatenate(scores)


def text_table(rows: Rows, columns: Collection[str] = ()) -> pa.Table:
    """The rows as terms read them: prompt and completion, or an empty prompt and the text.

    ``columns`` are those that the terms name. Raises BadInput if a row has neither a completion nor a text, and for a
    named column whose values have several types.
    """
    from ..data import examples

    texts: list[Row] = []
    for i, row in enumerate(rows):
        column = "completion" if "completion" in row else "text"
        rows.require(i, column, *(["prompt"] if column == "completion" else []))
        prompt = row["prompt"] if column == "completion" else ""
        texts.append({**row, "prompt": prompt, "completion": rows.text(i, column)})
    return examples.to_table(rows.changed(texts), range(len(rows)), columns)


def score_texts(reward: WorkerGroup, rows: pa.Table) -> np.ndarray:
    """Scores (n, k) by k terms; each worker takes a share. If one dies, it is replaced and all shares are repeated."""
    from ..actors.errors import WorkerLost

    shares = np.array_split(np.arange(len(rows)), len(reward))
    slices = [(rows.slice(share[0] if len(share) else 0, len(share)),) for share in shares]
    while True:
        try:
            return np.concatenate(reward.map("judge", slices))
        except WorkerLost as lost:
            reward.replace(lost.index)


SCORE = JobKind(needs=needs, describe=describe, run=run)
