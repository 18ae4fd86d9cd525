"""Supervised jobs: pre-training, fine-tuning, reward models and preferences, on the same learner gang as RL."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from ..algorithms.preferences import reference_point
from ..batch import Batch
from ..config import DPO, IPO, KTO, BadInput, DataConfig, PreferenceJob, RewardJob, Supervised
from ..data import batches, examples
from ..data.sampler import Sampler
from ..learner.objectives import LabelledObjective, LanguageModelObjective, Objective, PairwiseObjective
from ..learner.preferences import DesirableObjective, PairObjective, log_ratios
from ..metrics import Sinks
from ..models import load as models
from ..placement import Placement, plan
from ..quality import reward_model
from . import report, roles
from .checkpoint import Checkpoints
from .gang import Gang
from .rundir import RunDir
from .session import Stop, Stopped


@dataclass(frozen=True)
class Task:
    """Kind of model, how rows become a Batch, the objective, and whether it wants the starting model's log-probs."""

    kind: str
    prepare: Callable[[examples.Rows, Any, int], batches.Prepared]
    objective: Objective
    reference: bool = False


TASKS: dict[str, Task] = {
    "pretrain": Task("policy", batches.language_model, LanguageModelObjective()),
    "sft": Task("policy", batches.supervised, LanguageModelObjective()),
    "pairwise": Task("scalar", batches.pairs, PairwiseObjective()),
    "labelled": Task("scalar", batches.labelled, LabelledObjective()),
}


def task(job: Supervised) -> Task:
    """What a supervised job does."""
    if isinstance(job, PreferenceJob):
        if isinstance(job.objective, KTO):
            return Task("policy", batches.desirable, DesirableObjective(job.objective), reference=True)
        uses = isinstance(job.objective, DPO | IPO)
        return Task("policy", batches.pairs, PairObjective(job.objective), reference=uses)
    return TASKS[job.objective if isinstance(job, RewardJob) else job.job]  # type: ignore[attr-defined]


class SupervisedRun:
    """One supervised job. An epoch is a seeded shuffle; the cursor is the step."""

    def __init__(self, job: Supervised, run: RunDir, stop: Stop) -> None:
        self.job, self.run, self.stop = job, run.path, stop
        self.task = task(job)
        self.model, self.tokenizer = roles.prepare(job.model, self.run, job.run.seed)
        context = models.context_length(str(self.model.path))
        if job.max_length > context:
            raise BadInput(f"max_length {job.max_length} exceeds the model's context of {context} tokens; lower it")
        self.rows = self._load(job.data, "data")
        self.heldout = self._load(job.evaluate.data, "evaluate.data") if job.evaluate.data is not None else None
        self.sampler = Sampler(len(np.unique(self.rows.group)), job.run.seed)
        self.checkpoints = Checkpoints(self.run / "checkpoints", job.checkpoint.keep)

    def _load(self, config: DataConfig, where: str) -> Batch:
        rows = examples.load(config, where)
        made = self.task.prepare(rows, self.tokenizer, self.job.max_length)
        if made.dropped:
            print(
                f"{where}: {made.dropped} of {len(rows)} examples are longer than max_length {self.job.max_length}, left out"
            )
        return made.batch

    def train(self) -> dict[str, float]:
        """Trains to num_steps from wherever the run stands, exports, and returns the held-out metrics."""
        job = self.job
        chosen = plan(job.cluster, {"learner": job.learner.num_workers}, ray.cluster_resources())
        placement = Placement(chosen, 120.0)
        gang = Gang(job, roles.supervised_roles(job, self.model, self.task.kind), placement)
        try:
            gang.start()
            for line in gang.remarks():
                print(line, flush=True)
            return gang.recover(lambda: self._work(gang))
        finally:
            gang.kill()
            placement.remove()

    def _work(self, gang: Gang) -> dict[str, float]:
        if self.task.reference and not self.rows.has("ref_log_probs"):  # while the gang holds the starting model
            self.rows = self._with_reference(gang, self.rows)
            self.heldout = None if self.heldout is None else self._with_reference(gang, self.heldout)
        self._restore(gang)
        self._loop(gang)
        gang.export(self.run / "model", self.tokenizer.save_pretrained)
        return self.evaluate(gang) if self.heldout is not None else {}

    def _with_reference(self, gang: Gang, batch: Batch) -> Batch:
        return batch.replace(ref_log_probs=gang.annotate(batch, 1.0, ["old_log_probs"]).old_log_probs)

    def _settled(self, gang: Gang, batch: Batch, rows: np.ndarray) -> tuple[Objective, np.ndarray]:
        """The objective of a step and the rows it reads. KTO's gets its reference point from the mismatched row of each group."""
        if not isinstance(self.task.objective, DesirableObjective):
            return self.task.objective, rows
        matched, mismatched = rows[0::2], rows[1::2]
        now = gang.annotate(batch.take(mismatched), 1.0, ["old_log_probs"])
        return replace(self.task.objective, reference_point=reference_point(log_ratios(now))), matched

    def _restore(self, gang: Gang) -> None:
        self.step = 0
        found = self.checkpoints.latest()
        if found is not None:
            self.step = json.loads((found / "state.json").read_text())["step"]
            gang.load(found / "learner")
            print(f"going on from {found.name} in {self.run}", flush=True)
        log, config = self.job.log, self.job.model_dump(mode="json")
        self.sinks = Sinks(self.run, self.step, log.tensorboard, log.wandb, config)

    def _loop(self, gang: Gang) -> None:
        job, data = self.job, ray.put(self.rows)
        while self.step < job.num_steps:
            began = time.monotonic()
            rows = self._expand(self.sampler.indices(self.step * job.batch_size, job.batch_size))
            objective, rows = self._settled(gang, self.rows, rows)
            metrics = gang.update("actor", [(objective, 1.0)], [[rows]], data)
            metrics["time/step"] = time.monotonic() - began
            metrics["step/tokens_per_second"] = float(self.rows.lengths[rows].sum()) / metrics["time/step"]
            self.step += 1
            last = self.step == job.num_steps
            stopping = self.stop.requested and not last
            due = job.evaluate.every and self.step % job.evaluate.every == 0
            if self.heldout is not None and (last or due):
                metrics |= self.evaluate(gang)
            self.sinks.write(self.step - 1, metrics)  # first: who goes on from the checkpoint finds the line there
            if last or stopping or (job.checkpoint.every and self.step % job.checkpoint.every == 0):
                self._save(gang)
            if job.log.progress and (last or self.step % job.log.every == 0):
                print(report.supervised_line(self.step, job.num_steps, metrics), flush=True)
            if stopping:
                raise Stopped(f"stopped after step {self.step} of {job.num_steps}; the same command goes on from there")

    def _expand(self, units: np.ndarray) -> np.ndarray:
        """Rows of these groups: a pair is two rows side by side, and counts once in a batch that spans two epochs."""
        if self.sampler.num_examples == len(self.rows):
            return units
        pairs = np.unique(units)
        return np.stack([2 * pairs, 2 * pairs + 1], 1).reshape(-1)

    def _save(self, gang: Gang) -> None:
        def fill(directory: Path) -> None:
            (directory / "learner").mkdir()
            gang.save(directory / "learner")

        self.checkpoints.write(self.step, fill, {"step": self.step})

    def evaluate(self, gang: Gang) -> dict[str, float]:
        """The objective's metrics on held-out examples; for reward models calibration and length bias too."""
        assert self.heldout is not None
        objective, rows = self._settled(gang, self.heldout, np.arange(len(self.heldout)))
        found = gang.evaluate(objective, ray.put(self.heldout.take(rows)))
        if "loss/cross_entropy" in found:
            found["perplexity"] = math.exp(min(found["loss/cross_entropy"], 700.0))
        if self.task.kind == "scalar":
            found |= reward_model.bias_and_calibration(
                self.heldout, gang.scores(self.heldout), paired=self.task.objective.unit is not None
            )
        return {f"evaluate/{name}": value for name, value in found.items()}
