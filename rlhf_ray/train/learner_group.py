"""LearnerGroup: all ranks of the learner behind one interface of whole Batches and metrics."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray

from ..actors.errors import GangTimeout, WorkerLost
from ..actors.group import WorkerGroup
from ..actors.placement import Placement
from ..batch import COLUMNS, Batch
from ..config import Common, RLJob, resolve_dtypes
from ..learner.objectives import LossTerm, Objective
from ..learner.worker import LearnerWorker, Role
from ..models.tolerance import WEIGHT_SYNC
from ..run.atomic import replace_directory
from ..run.events import notice
from ..run.metrics import means_of, merge_sums

Result = TypeVar("Result")


class LearnerGroup:
    """All ranks of the learner, called together. If one dies, the call raises WorkerLost: see :meth:`recover`."""

    def __init__(self, job: Common, roles: Sequence[Role], placement: Placement) -> None:
        self.plan = placement.plan
        self.job = resolve_dtypes(job, self.plan.device)
        self.group = WorkerGroup(
            "learner",
            LearnerWorker,
            job.learner.num_workers,
            arguments=lambda index: {
                "config": job.learner,
                "roles": roles,
                "device": self.plan.device,
                "num_threads": placement.num_threads("learner", index),
                "deadline_s": job.cluster.deadline_s,
            },
            options=lambda index: placement.options("learner", index),
            deadline_s=job.cluster.deadline_s,
            max_restarts=job.cluster.max_restarts,
            gang=True,
        )
        self.info: dict[str, Any] = {}
        self.timed_out = False  # since the last checkpoint was written

    def start(self) -> None:
        """Numbers the ranks by node and GPU, joins them and builds their models."""
        self.group.sort_by_device()
        address, port = self.group.host(0), self.group.broadcast("free_port")[0]
        world_size = len(self.group)
        self.info = self.group.map("start", [(rank, world_size, address, port) for rank in range(world_size)])[0]

    def remarks(self) -> list[str]:
        """Sentences about models that cannot be packed, and about a machine that is slow in the model's dtype."""
        sentences = [
            f"{role}: padded forward passes, which are slower: {info['padded_reason']}"
            for role, info in self.info["roles"].items()
            if "padded_reason" in info
        ]
        share = self.info["peak_flops"] / self.info["float32_flops"]
        if share < 1.0:
            sentences.append(
                f"{self.job.model.dtype} products run at {share:.2f} of float32's speed here; take model.dtype=float32"
            )
        return sentences

    def restart(self) -> None:
        """Replaces all ranks by new ones, which have the weights of the job's start."""
        self.group.respawn()
        self.start()

    def recover(self, work: Callable[[], Result], before_restart: Callable[[], object] = lambda: None) -> Result:
        """The result of ``work``.

        If a rank is lost, restarts all and calls ``work`` again, which loads the last checkpoint. The same happens if a
        stage hangs, but only once: a second hang before the next checkpoint is raised.
        """
        lost = False
        while True:
            try:
                if lost:
                    before_restart()
                    self.restart()
                return work()
            except WorkerLost as error:
                notice(f"{error}; going back to the last checkpoint")
            except GangTimeout as error:
                if self.timed_out:
                    raise
                self.timed_out = True
                notice(f"{error}\nall ranks are restarted; going back to the last checkpoint")
            lost = True

    def keep_awake(self, parts: Collection[str]) -> list[dict[str, int]]:
        """Wakes these parts of the learner's memory (learner/residency.py), and puts the others to sleep.

        Returns the bytes that each part gave or took, by rank.
        """
        return self.group.broadcast("keep_awake", parts)

    def annotate(self, batch: Batch, temperature: float, columns: Sequence[str]) -> Batch:
        """The Batch with ``columns`` (old_log_probs, ref_log_probs, values), of which each rank computes some rows."""
        if not columns:
            return batch
        parts = self.group.broadcast("annotate", ray.put(batch), temperature, columns)
        names = [*columns, "final_values"] if "values" in columns else columns
        return batch.replace(**{name: _scatter(batch, parts, name) for name in names})

    def update(self, role: str, terms: Sequence[LossTerm]) -> dict[str, float]:
        """Optimizer steps of a role on the sum of ``terms``, which all have rows for each step.

        Returns means over ranks. Says so if a step was skipped.
        """
        batches = [t.batch if isinstance(t.batch, ray.ObjectRef) else ray.put(t.batch) for t in terms]
        terms = [replace(term, batch=None) for term in terms]  # Ray fetches arguments, not what is inside one
        metrics = means_of(merge_sums(self.group.broadcast("update_on", role, terms, *batches)))
        if num_skipped := metrics.get(f"{role}/skipped_steps"):
            notice(
                f"{role}: {num_skipped:.0f} of {len(terms[0].rows)} optimizer steps were skipped, because their "
                "gradients were not finite; if that goes on, lower learner.lr, or look for infinite rewards or "
                "advantages"
            )
        return metrics

    def evaluate(self, objective: Objective, batch: Any) -> dict[str, float]:
        """The objective's metrics on a Batch, or on a reference to one, without learning."""
        return means_of(merge_sums(self.group.broadcast("evaluate", "actor", objective, batch)))

    def predict(self, objective: Any, batch: Batch) -> list[np.ndarray]:
        """The objective's prediction for each row, in their order."""
        predictions: list[Any] = [None] * len(batch)
        for part in self.group.broadcast("predict", "actor", objective, ray.put(batch)):
            for row, prediction in zip(part["rows"], part["predictions"], strict=True):
                predictions[row] = prediction
        return predictions

    def sync_weights(
        self,
        version: int,
        temperature: float,
        probes: tuple[np.ndarray, np.ndarray],
        tolerance: float,
        weight_names: str,
    ) -> Iterator[Any]:
        """References to the messages of a sync of the actor (weights/messages.py), each as soon as it is made.

        ``probes``: see :func:`probe_tokens`. ``tolerance``: by how many nats an engine may differ on the probe; see
        :func:`sync_tolerance`. ``weight_names``: those that the engine knows.
        """
        return self.group.stream("sync_weights", version, probes, temperature, tolerance, weight_names)

    def save(self, directory: Path) -> None:
        """Writes every rank's shards into ``directory``."""
        self.group.broadcast("save", str(directory))
        self.timed_out = False

    def load(self, directory: Path) -> None:
        """Reads back what :meth:`save` wrote."""
        self.group.broadcast("load", str(directory))

    def export(self, directory: Path, save_tokenizer: Callable[[str], Any]) -> None:
        """Writes the trained model and tokenizer in Hugging Face format; replaces an older one at the end."""
        with replace_directory(directory) as temporary:
            self.group.broadcast("export", str(temporary))
            save_tokenizer(str(temporary))

    def kill(self) -> None:
        """Ends all ranks."""
        self.group.kill()


def sync_tolerance(job: RLJob) -> float:
    """By how many nats engine and learner may differ on the probe: the looser of their dtypes decides."""
    return max(WEIGHT_SYNC[job.model.dtype], WEIGHT_SYNC[job.rollout.engine.dtype])


def _scatter(batch: Batch, parts: Sequence[dict[str, np.ndarray]], name: str) -> np.ndarray:
    """Puts the ranks' shares of a column into the Batch's order: (B,) or (T,) float32.

    For example, of rows with 2, 3 and 1 tokens, a rank's rows [2, 0] are at the flat positions [5, 0, 1].
    """
    if COLUMNS[name].per == "sequence":
        column = np.zeros(len(batch), np.float32)
        for part in parts:
            column[part["rows"]] = part[name]
        return column
    column = np.zeros(len(batch.tokens), np.float32)
    for part in parts:
        column[batch.flat_positions(part["rows"])] = part[name]
    return column
