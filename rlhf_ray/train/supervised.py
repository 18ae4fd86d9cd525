"""Supervised jobs: examples, a loss and held-out examples, on the same learner group as RL."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from ..actors.placement import Placement, cluster_nodes, plan_placement, reserved_devices, worker_demand
from ..actors.session import Stop
from ..batch import Batch
from ..config import BadInput, Supervised, TrainingData
from ..data import examples
from ..data.stream import Stream
from ..learner.objectives import LossTerm
from ..models.load import read_context_length
from ..run.atomic import write_json
from ..run.checkpoint import Checkpoints
from ..run.directory import RunDir
from ..run.events import notice
from ..run.outcome import Watch, unwatched
from ..run.usage import Meter
from ..tasks.registry import task_kind
from . import roles, step_metrics
from .evaluation import SEED_STEP
from .learner_group import LearnerGroup
from .loop import StageTimer, StepEnd, is_due


class SupervisedRun:
    """One supervised job. An epoch is a seeded shuffle; the cursor is the step."""

    def __init__(self, job: Supervised, run: RunDir, stop: Stop, watch: Watch = unwatched) -> None:
        self.job, self.run, self.stop, self.watch = job, run, stop, watch
        streamed = isinstance(job.data, TrainingData) and job.data.stream
        rows = Stream(job.data, "data", run.path) if streamed else examples.load(job.data, "data")
        heldout = examples.load(job.evaluate.data, "evaluate.data") if job.evaluate.data is not None else None
        kind = task_kind(job)
        self.kind, self.labels = kind.model, kind.labels(job, rows)
        self.model, self.tokenizer = roles.prepare(job.model, run.path, job.run.seed, self.kind, self.labels)
        context = read_context_length(str(self.model.path))
        if job.max_length > context:
            raise BadInput(f"max_length {job.max_length} exceeds the model's context of {context} tokens; lower it")
        self.task = kind.build(job, rows, heldout, self.tokenizer)
        self.rows, self.heldout = self.task.data.train, self.task.data.heldout
        self.sampler = self.task.sampler(job.run.seed)
        self.checkpoints = Checkpoints(run.path / "checkpoints", job.checkpoint.keep, run.id)
        self.best = Checkpoints(run.path / "best", 1, run.id)
        self.timer = StageTimer(run.events)
        self.step = 0

    def train(self) -> dict[str, float]:
        """Trains to num_steps from wherever the run stands, exports, and returns the held-out metrics."""
        job = self.job
        chosen = plan_placement(job.cluster, worker_demand(learner=job.learner), cluster_nodes())
        placement = Placement(chosen)
        learners = LearnerGroup(job, roles.supervised_roles(job, self.model, self.kind, self.labels), placement)
        try:
            learners.start()
            self.step_end = StepEnd(
                job=job,
                run=self.run,
                meter=Meter(self.run, reserved_devices(chosen, cluster_nodes()), job.cluster.price_per_gpu_hour),
                timer=self.timer,
                stop=self.stop,
                watch=self.watch,
                evaluate=partial(self._evaluate_step, learners),
                save=partial(self._save, learners),
                progress_line=self._progress_line,
            )
            for line in learners.remarks():
                notice(line)
            return learners.recover(lambda: self._work(learners))
        finally:
            learners.kill()
            placement.remove()

    def _work(self, learners: LearnerGroup) -> dict[str, float]:
        job = self.job
        log_probs = partial(_log_probs, learners)
        self.rows = self.task.with_reference(self.rows, log_probs)  # while the learner holds the starting model
        if self.heldout is not None:
            self.heldout = self.task.with_reference(self.heldout, log_probs)
        self._restore(learners)
        with self.stop.deferred():
            self._loop(learners)
        if job.evaluate.best is not None and (best := self.best.latest()) is not None:
            learners.load(best / "learner")
            notice(f"the model is that of {best.name}, the best by {job.evaluate.best}")
        learners.export(self.run.path / "model", self.tokenizer.save_pretrained)
        return self.evaluate(learners) if self.heldout is not None else {}

    def _restore(self, learners: LearnerGroup) -> None:
        self.step = 0
        checkpoint = self.checkpoints.latest()
        if checkpoint is not None:
            self.step = json.loads((checkpoint / "state.json").read_text())["step"]
            learners.load(checkpoint / "learner")
            notice(f"going on from {checkpoint.name} in {self.run.path}")
        self.step_end.open(self.step)

    def _loop(self, learners: LearnerGroup) -> None:
        self.timer.begin()
        while self.step < self.job.num_steps:
            with self.timer.stage("learn"):
                seen = self._seen()
                objective, rows = self.task.for_step(seen, partial(_log_probs, learners))
                metrics = learners.update("actor", [LossTerm(objective=objective, coef=1.0, batch=seen, rows=[rows])])
            self.step += 1
            self.step_end.finish(self.step, metrics, float(seen.lengths[rows].sum()))

    def _evaluate_step(self, learners: LearnerGroup) -> dict[str, float]:
        """The evaluation of a step, and the best model so far kept."""
        if self.heldout is None:
            return {}
        with self.timer.stage("evaluate"):
            metrics = self.evaluate(learners)
            self._keep_best(learners, metrics)
        return metrics

    def _progress_line(self, step: int, metrics: dict[str, float]) -> str | None:
        last = step == self.job.num_steps
        return (
            step_metrics.supervised_line(self.job.num_steps, step, metrics)
            if last or is_due(step, self.job.log.every)
            else None
        )

    def _seen(self) -> Batch:
        """The step's examples: rows of a group side by side (one drawn twice is two groups), with masks of this step's own."""
        units = np.sort(self.sampler.indices(self.step * self.job.batch_size, self.job.batch_size))
        size = len(self.rows) // self.sampler.num_examples
        rows = (size * units[:, None] + np.arange(size)).reshape(-1)
        seen = self.rows.take(rows).replace(group=np.repeat(np.arange(len(units)), size))
        return seen if self.task.view is None else self.task.view(seen, [self.job.run.seed, self.step])

    def _save(self, learners: LearnerGroup) -> None:
        with self.timer.stage("checkpoint"):
            self.checkpoints.write(self.step, partial(_shards, learners), {"step": self.step})

    def _keep_best(self, learners: LearnerGroup, metrics: dict[str, float]) -> None:
        """Keeps the learner in RUN/best where its evaluation is the best so far. Raises BadInput for an unknown metric."""
        name = self.job.evaluate.best
        if name is None:
            return
        key = f"evaluate/{name.removeprefix('-')}"
        if key not in metrics:
            there = ", ".join(k.removeprefix("evaluate/") for k in metrics if k.startswith("evaluate/"))
            raise BadInput(f"evaluate.best: there is no held-out metric '{name}' (there are {there})")
        score = -metrics[key] if name.startswith("-") else metrics[key]
        before = self.best.latest()
        if before is None or score > json.loads((before / "state.json").read_text())["score"]:
            self.best.write(self.step, partial(_shards, learners), {"step": self.step, "score": score})

    def evaluate(self, learners: LearnerGroup) -> dict[str, float]:
        """The objective's metrics on held-out examples, and what the predictions are worth; all of it in RUN/evaluation.json."""
        assert self.heldout is not None
        batch = self.heldout if self.task.view is None else self.task.view(self.heldout, [self.job.run.seed, SEED_STEP])
        objective, rows = self.task.for_step(batch, partial(_log_probs, learners))
        found: dict[str, Any] = learners.evaluate(objective, ray.put(batch.take(rows)))
        if self.task.perplexity:
            found["perplexity"] = math.exp(min(found["loss/cross_entropy"], 700.0))
        if self.task.judge is not None:
            judged = batch.take(np.arange(len(batch))[: self.task.num_judged])
            found |= self.task.judge(learners.predict(objective, judged))
        write_json(self.run.path / "evaluation.json", {"step": self.step, **found})
        return {f"evaluate/{name}": value for name, value in found.items() if isinstance(value, float)}


def _shards(learners: LearnerGroup, directory: Path) -> None:
    (directory / "learner").mkdir()
    learners.save(directory / "learner")


def _log_probs(learners: LearnerGroup, batch: Batch) -> Batch:
    """The Batch with old_log_probs, those of the model that is trained."""
    return learners.annotate(batch, 1.0, ["old_log_probs"])
