"""Supervised jobs: pre-training, fine-tuning and reward models, on the same learner gang as RL."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray

from ..batch import Batch
from ..config import BadInput, DataConfig, RewardJob, Supervised
from ..data import batches, examples
from ..data.sampler import Sampler
from ..learner.objectives import LabelledObjective, LanguageModelObjective, Objective, PairwiseObjective
from ..metrics import Sinks
from ..models import load as models
from ..placement import Placement, plan
from . import quality, report, roles
from .checkpoint import Checkpoints
from .gang import Gang
from .rundir import RunDir
from .session import Stop, Stopped

Prepare = Callable[[examples.Rows, Any, int], batches.Prepared]
TASKS: dict[str, tuple[str, Prepare, Objective]] = {
    "pretrain": ("policy", batches.language_model, LanguageModelObjective()),
    "sft": ("policy", batches.supervised, LanguageModelObjective()),
    "pairwise": ("scalar", batches.pairs, PairwiseObjective()),
    "labelled": ("scalar", batches.labelled, LabelledObjective()),
}


def task(job: Supervised) -> tuple[str, Prepare, Objective]:
    """Kind of model, how rows become a Batch, and the objective."""
    return TASKS[job.objective if isinstance(job, RewardJob) else job.job]  # type: ignore[attr-defined]


class SupervisedRun:
    """One supervised job. An epoch is a seeded shuffle; the cursor is the step."""

    def __init__(self, job: Supervised, run: RunDir, stop: Stop) -> None:
        self.job, self.run, self.stop = job, run.path, stop
        self.kind, self.prepare, self.objective = task(job)
        self.model, self.tokenizer = roles.prepare(job.model, self.run, job.run.seed)
        context = models.context_length(str(self.model.path))
        if job.max_length > context:
            raise BadInput(f"max_length {job.max_length} exceeds the model's context of {context} tokens; lower it")
        self.rows = self._load(job.data, "data")
        self.heldout = self._load(job.evaluate.data, "evaluate.data") if job.evaluate.data is not None else None
        units = np.unique(self.rows.group) if self.objective.unit else np.arange(len(self.rows))
        self.sampler = Sampler(len(units), job.run.seed)
        self.checkpoints = Checkpoints(self.run / "checkpoints", job.checkpoint.keep)

    def _load(self, config: DataConfig, where: str) -> Batch:
        rows = examples.load(config, where)
        made = self.prepare(rows, self.tokenizer, self.job.max_length)
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
        gang = Gang(job, roles.supervised_roles(job, self.model, self.kind), placement)
        try:
            gang.start()
            for line in gang.remarks():
                print(line, flush=True)
            return gang.recover(lambda: self._work(gang))
        finally:
            gang.kill()
            placement.remove()

    def _work(self, gang: Gang) -> dict[str, float]:
        self._restore(gang)
        self._loop(gang)
        gang.export(self.run / "model", self.tokenizer.save_pretrained)
        return self.evaluate(gang) if self.heldout is not None else {}

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
            metrics = gang.update("actor", [(self.objective, 1.0)], [[rows]], data)
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
        """Rows of these units: a pair is two rows side by side, and counts once in a batch that spans two epochs."""
        if self.objective.unit is None:
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
        found = gang.evaluate(self.objective, ray.put(self.heldout))
        if self.kind == "scalar":
            found |= quality.reward_model(
                self.heldout, gang.scores(self.heldout), paired=self.objective.unit is not None
            )
        return {f"evaluate/{name}": value for name, value in found.items()}
