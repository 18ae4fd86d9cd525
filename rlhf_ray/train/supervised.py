"""Supervised jobs: examples, a loss and held-out examples, on the same learner group as RL."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from ..actors.placement import Placement, cluster_nodes, plan_placement, reserved_devices, worker_demand
from ..actors.session import Stop
from ..algorithms.preferences import reference_point
from ..batch import Batch
from ..config import BadInput, Supervised, TrainingData
from ..data import examples
from ..data.stream import Stream
from ..learner.objectives import LossTerm, Objective
from ..models import load as models
from ..run.atomic import write_json
from ..run.checkpoint import Checkpoints
from ..run.directory import RunDir
from ..run.events import notice
from ..run.outcome import Stopped, Watch, unwatched
from ..run.sinks import open_sinks
from ..run.usage import Meter
from ..tasks import build as tasks
from ..tasks.language_model import LanguageModelObjective
from ..tasks.preference import DesirableObjective, log_ratios
from ..tasks.seq2seq import Seq2SeqObjective
from . import roles, step_metrics
from .evaluation import SEED_STEP
from .learner_group import LearnerGroup


class SupervisedRun:
    """One supervised job. An epoch is a seeded shuffle; the cursor is the step."""

    def __init__(self, job: Supervised, run: RunDir, stop: Stop, watch: Watch = unwatched) -> None:
        self.job, self.held, self.run, self.stop, self.watch = job, run, run.path, stop, watch
        streamed = isinstance(job.data, TrainingData) and job.data.stream
        rows = Stream(job.data, "data", self.run) if streamed else examples.load(job.data, "data")
        heldout = examples.load(job.evaluate.data, "evaluate.data") if job.evaluate.data is not None else None
        self.kind = tasks.kind(job)
        self.labels = () if isinstance(rows, Stream) else tasks.labels(job, rows)
        self.model, self.tokenizer = roles.prepare(job.model, self.run, job.run.seed, self.kind, self.labels)
        context = models.context_length(str(self.model.path))
        if job.max_length > context:
            raise BadInput(f"max_length {job.max_length} exceeds the model's context of {context} tokens; lower it")
        self.task = tasks.build(job, self.labels, self.tokenizer, rows, heldout)
        self.rows, self.heldout = self.task.train, self.task.heldout
        self.sampler = self.task.sampler(job.run.seed)
        self.checkpoints = Checkpoints(self.run / "checkpoints", job.checkpoint.keep, run.id)
        self.best = Checkpoints(self.run / "best", 1, run.id)
        self.step = 0

    def train(self) -> dict[str, float]:
        """Trains to num_steps from wherever the run stands, exports, and returns the held-out metrics."""
        job = self.job
        chosen = plan_placement(job.cluster, worker_demand(learner=job.learner), cluster_nodes())
        placement = Placement(chosen)
        learners = LearnerGroup(job, roles.supervised_roles(job, self.model, self.kind, self.labels), placement)
        try:
            learners.start()
            self.meter = Meter(self.held, reserved_devices(chosen, cluster_nodes()), job.cluster.price_per_gpu_hour)
            for line in learners.remarks():
                notice(line)
            return learners.recover(lambda: self._work(learners))
        finally:
            learners.kill()
            placement.remove()

    def _work(self, learners: LearnerGroup) -> dict[str, float]:
        job = self.job
        if self.task.reference and not self.rows.has("ref_log_probs"):  # while the learner holds the starting model
            self.rows = self._with_reference(learners, self.rows)
            self.heldout = None if self.heldout is None else self._with_reference(learners, self.heldout)
        self._restore(learners)
        self._loop(learners)
        if job.evaluate.best is not None and (best := self.best.latest()) is not None:
            learners.load(best / "learner")
            notice(f"the model is that of {best.name}, the best by {job.evaluate.best}")
        learners.export(self.run / "model", self.tokenizer.save_pretrained)
        return self.evaluate(learners) if self.heldout is not None else {}

    def _with_reference(self, learners: LearnerGroup, batch: Batch) -> Batch:
        return batch.replace(ref_log_probs=learners.annotate(batch, 1.0, ["old_log_probs"]).old_log_probs)

    def _settled(self, learners: LearnerGroup, batch: Batch, rows: np.ndarray) -> tuple[Objective, np.ndarray]:
        """The objective of a step and the rows it reads. KTO's gets its reference point from the mismatched row of each group."""
        if not isinstance(self.task.objective, DesirableObjective):
            return self.task.objective, rows
        matched, mismatched = rows[0::2], rows[1::2]
        now = learners.annotate(batch.take(mismatched), 1.0, ["old_log_probs"])
        return replace(self.task.objective, reference_point=reference_point(log_ratios(now))), matched

    def _restore(self, learners: LearnerGroup) -> None:
        self.step = 0
        found = self.checkpoints.latest()
        if found is not None:
            self.step = json.loads((found / "state.json").read_text())["step"]
            learners.load(found / "learner")
            notice(f"going on from {found.name} in {self.run}")
        self.sinks = open_sinks(self.job, self.held, self.step)

    def _loop(self, learners: LearnerGroup) -> None:
        job = self.job
        while self.step < job.num_steps:
            began = time.monotonic()
            seen = self._seen()
            objective, rows = self._settled(learners, seen, np.arange(len(seen)))
            metrics = learners.update("actor", [LossTerm(objective=objective, coef=1.0, batch=seen, rows=[rows])])
            metrics["time/step"] = time.monotonic() - began
            tokens = float(seen.lengths[rows].sum())
            metrics["step/tokens_per_second"] = tokens / metrics["time/step"]
            stages = {"learn": metrics["time/step"]}
            self.step += 1
            last = self.step == job.num_steps
            stopping = self.stop.requested and not last
            due = last or bool(job.evaluate.every and self.step % job.evaluate.every == 0)
            if self.heldout is not None and due:
                metrics |= self.evaluate(learners)
                self._keep_best(learners, metrics)
                stages["evaluate"] = time.monotonic() - began - metrics["time/step"]
            metrics |= self.meter.step(stages, tokens)
            self.sinks.write(self.step - 1, metrics)  # first: who goes on from the checkpoint finds the line there
            if last or stopping or (job.checkpoint.every and self.step % job.checkpoint.every == 0):
                self._save(learners)
            if job.log.progress and (last or self.step % job.log.every == 0):
                print(step_metrics.supervised_line(self.step, job.num_steps, metrics), flush=True)
            if self.heldout is not None and due:
                self.watch(self.step, metrics)
            if stopping:
                raise Stopped(f"stopped after step {self.step} of {job.num_steps}; the same command goes on from there")

    def _seen(self) -> Batch:
        """The step's examples: rows of a group side by side (one drawn twice is two groups), with masks of this step's own."""
        units = np.sort(self.sampler.indices(self.step * self.job.batch_size, self.job.batch_size))
        size = len(self.rows) // self.sampler.num_examples
        rows = (size * units[:, None] + np.arange(size)).reshape(-1)
        seen = self.rows.take(rows).replace(group=np.repeat(np.arange(len(units)), size))
        return seen if self.task.view is None else self.task.view(seen, [self.job.run.seed, self.step])

    def _save(self, learners: LearnerGroup) -> None:
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
        objective, rows = self._settled(learners, batch, np.arange(len(batch)))
        found: dict[str, Any] = learners.evaluate(objective, ray.put(batch.take(rows)))
        if isinstance(objective, LanguageModelObjective | Seq2SeqObjective):
            found["perplexity"] = math.exp(min(found["loss/cross_entropy"], 700.0))
        if self.task.judge is not None:
            judged = batch.take(np.arange(len(batch))[: self.task.num_judged])
            found |= self.task.judge(learners.predict(objective, judged))
        write_json(self.run / "evaluation.json", {"step": self.step, **found})
        return {f"evaluate/{name}": value for name, value in found.items() if isinstance(value, float)}


def _shards(learners: LearnerGroup, directory: Path) -> None:
    (directory / "learner").mkdir()
    learners.save(directory / "learner")
