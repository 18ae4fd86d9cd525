"""A supervised task: its data, its objective, and how its predictions are judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from ..batch import Batch
from ..config import Supervised
from ..data.examples import Rows
from ..data.prepared import Prepared
from ..data.sampler import Mixture, Sampler, Shares, balanced
from ..data.stream import Stream
from ..data.tokenizer import fingerprint
from ..learner.objectives import Objective
from ..learner.worker import Role
from ..run.events import notice

View = Callable[[Batch, Sequence[int]], Batch]
"""What a step or an evaluation sees of a Batch, seeded by a list of integers."""
Judge = Callable[[list[np.ndarray]], dict[str, Any]]
"""Measures of the predictions, one array for each held-out row."""
LogProbs = Callable[[Batch], Batch]
"""The Batch with old_log_probs, those of the model that is trained, at temperature 1."""


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """The Batches of a task."""

    train: Batch
    heldout: Batch | None
    shares: Shares
    """How often the rows of the dataset are drawn."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a supervised job trains on, what it minimises, and what it measures."""

    objective: Objective
    data: TaskData
    view: View | None = None
    judge: Judge | None = None
    num_judged: int | None = None
    """The judge reads the first so many held-out rows; None: all."""
    perplexity: bool = False
    """Whether exp(loss/cross_entropy) is reported as the perplexity."""
    reads_reference: bool = False
    """Whether the objective reads ref_log_probs, the starting model's."""
    classes: np.ndarray | None = None
    """(rows of train,): classes that are drawn equally often; None: ``data.shares`` says how often."""
    resolve: Callable[[Batch, LogProbs], tuple[Objective, np.ndarray]] | None = None
    """Makes the objective of one step, and picks the rows that it reads; None: ``objective`` on all rows."""

    def sampler(self, seed: int) -> Sampler | Mixture:
        """The order in which the groups of ``data.train`` come. Raises BadInput if a part of a mixture has none."""
        if self.classes is not None:
            return balanced(self.classes, seed)
        train = self.data.train
        first_rows = np.unique(train.group, return_index=True)[1]
        return self.data.shares.sampler(train.example_id[first_rows], seed)

    def with_reference(self, batch: Batch, log_probs: LogProbs) -> Batch:
        """The Batch with ref_log_probs if the objective reads them; called while the learner holds the starting model."""
        if not self.reads_reference or batch.has("ref_log_probs"):
            return batch
        return batch.replace(ref_log_probs=log_probs(batch).old_log_probs)

    def for_step(self, batch: Batch, log_probs: LogProbs) -> tuple[Objective, np.ndarray]:
        """The objective of one step or evaluation, and the rows of ``batch`` that it reads."""
        if self.resolve is None:
            return self.objective, np.arange(len(batch))
        return self.resolve(batch, log_probs)


JobType = TypeVar("JobType", bound=Supervised)


def no_labels(job: Supervised, rows: Rows | Stream) -> tuple[str, ...]:
    """A head without named classes."""
    return ()


def unchanged_role(job: Any, role: Role) -> Role:
    """The role as it is for every task that does not say otherwise."""
    return role


@dataclass(frozen=True, kw_only=True)
class TaskKind(Generic[JobType]):
    """How one kind of supervised job becomes a Task."""

    model: str
    """The kind of model: a key of models.load.AUTO_CLASSES."""
    build: Callable[[JobType, Any, Rows | None, Any], Task]
    """(job, rows, held-out rows or None, tokenizer) -> Task. Raises BadInput for rows that do not fit the job."""
    labels: Callable[[JobType, Any], tuple[str, ...]] = no_labels
    """(job, rows) -> names of the head's classes: those of the config, else those of the training rows."""
    adapt_role: Callable[[Any, Role], Role] = unchanged_role
    """(job, role) -> the trained model's Role with what this kind of job changes in it."""


def prepare_data(
    job: Supervised,
    prepare: Callable[[Rows, Any, int], Prepared],
    rows: Rows | Stream,
    heldout: Rows | None,
    tokenizer: Any,
) -> TaskData:
    """The Batches that ``prepare(rows, tokenizer, max_length)`` makes of training and held-out rows.

    A streamed dataset is prepared block by block. A notice says how many rows are left out.
    """

    def prepare_block(block: Rows) -> Prepared:
        return prepare(block, tokenizer, job.max_length)

    if isinstance(rows, Stream):
        key = job.model_dump_json(include={"job", "objective", "separator", "max_length"})
        train = rows.prepare(prepare_block, key + fingerprint(tokenizer))
    else:
        train = prepare_block(rows)
    _say_dropped(train, rows.option, job.max_length)
    held = None if heldout is None else prepare_block(heldout)
    if held is not None and heldout is not None:
        _say_dropped(held, heldout.option, job.max_length)
    return TaskData(train=train.batch, heldout=None if held is None else held.batch, shares=train.shares)


def _say_dropped(prepared: Prepared, option: str, max_length: int) -> None:
    if prepared.num_dropped:
        notice(
            f"{option}: {prepared.num_dropped} of {prepared.num_rows} examples are longer than max_length {max_length}, "
            "left out"
        )
