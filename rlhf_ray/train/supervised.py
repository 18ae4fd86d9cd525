"""SupervisedRun: the loop of supervised jobs, on the same learner group as RL."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from ..actors.placement import cluster_nodes, reserved_devices
from ..actors.session import Stop
from ..batch import Batch
from ..config import BadInput, Supervised
from ..learner.objectives import LossTerm
from ..run.atomic import write_json
from ..run.checkpoint import Checkpoints
from ..run.directory import RunDir
from ..run.events import notice
from ..run.outcome import Watch, unwatched
from ..run.usage import Meter
from . import step_metrics
from .evaluation import SEED_STEP
from .loop import StageTimer, StepEnd
from .setup import SupervisedSetup
from .startup import startup_part


class SupervisedRun:
    """One supervised job. An epoch is a seeded shuffle of the examples; the position in it follows from the step."""

    def __init__(
        self, job: Supervised, run: RunDir, setup: SupervisedSetup, stop: Stop, watch: Watch = unwatched
    ) -> None:
        self.job, self.run = job, run
        self.learners, self.task, self.tokenizer = setup.learners, setup.task, setup.tokenizer
        self.train_batch, self.heldout = self.task.data.train, self.task.data.heldout
        self.sampler = self.task.sampler(job.run.seed)
        self.checkpoints = Checkpoints(run.path / "checkpoints", job.checkpoint.keep, run.id)
        self.best = Checkpoints(run.path / "best", 1, run.id)
        self.timer = StageTimer(run.events)
        self.step_end = StepEnd(
            job=job,
            run=run,
            meter=Meter(run, reserved_devices(self.learners.plan, cluster_nodes()), job.cluster.price_per_gpu_hour),
            timer=self.timer,
            stop=stop,
            watch=watch,
            evaluate=self.evaluate_step,
            save=self.save,
            progress_line=partial(step_metrics.supervised_line, job.num_steps),
            progress_every=job.log.every,
        )
        self.step = 0

    def train(self) -> dict[str, float]:
        """Trains from the last checkpoint to num_steps and exports; returns the held-out metrics.

        If a learner rank is lost, all are restarted from the last checkpoint.
        """
        return self.learners.recover(self._work)

    def _work(self) -> dict[str, float]:
        self.add_reference()
        self.restore()
        with self.step_end.stop.deferred():
            self.loop()
        self.load_best()
        self.learners.export(self.run.path / "model", self.tokenizer.save_pretrained)
        return self.evaluate(self.heldout) if self.heldout is not None else {}

    def add_reference(self) -> None:
        """Adds the starting model's log-probs to the Batches if the task reads them.

        It must be called before a checkpoint is loaded, while the learner holds the starting model.
        """
        if not self.task.reads_reference:
            return
        with startup_part("log-probs of the starting model"):
            self.train_batch = self.task.with_reference(self.train_batch, self.log_probs)
            if self.heldout is not None:
                self.heldout = self.task.with_reference(self.heldout, self.log_probs)

    def log_probs(self, batch: Batch) -> Batch:
        """The Batch with old_log_probs, those of the model that is trained."""
        return self.learners.annotate(batch, 1.0, ["old_log_probs"])

    # the loop -------------------------------------------------------------------------------------------------------

    def loop(self) -> None:
        """Takes optimizer steps until num_steps."""
        self.timer.begin()
        while self.step < self.job.num_steps:
            with self.timer.stage("learn"):
                batch = self.step_batch()
                objective, rows = self.task.for_step(batch, self.log_probs)
                metrics = self.learners.update(
                    "actor", [LossTerm(objective=objective, coef=1.0, batch=batch, rows=[rows])]
                )
            self.step += 1
            self.step_end.finish(self.step, metrics, float(batch.lengths[rows].sum()))

    def step_batch(self) -> Batch:
        """The step's examples, as the task's view shows them.

        Rows of a group lie next to each other. An example that was drawn twice is two groups. For example, with pairs,
        the examples 4 and 4 are the rows 8, 9, 8 and 9 of the groups 0, 0, 1 and 1.
        """
        examples = np.sort(self.sampler.indices(self.step * self.job.batch_size, self.job.batch_size))
        rows_per_example = len(self.train_batch) // self.sampler.num_examples
        rows = (rows_per_example * examples[:, None] + np.arange(rows_per_example)).reshape(-1)
        group = np.repeat(np.arange(len(examples)), rows_per_example)
        return self.view(self.train_batch.take(rows).replace(group=group), self.step)

    def view(self, batch: Batch, seed_step: int) -> Batch:
        """The Batch as the task shows it in this step, for example with masks of its own."""
        return batch if self.task.view is None else self.task.view(batch, [self.job.run.seed, seed_step])

    # state ----------------------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Loads the last checkpoint, if there is one."""
        self.step = 0
        checkpoint = self.checkpoints.latest()
        if checkpoint is not None:
            self.step = json.loads((checkpoint / "state.json").read_text())["step"]
            self.learners.load(checkpoint / "learner")
            notice(f"going on from {checkpoint.name} in {self.run.path}")
        self.step_end.open(self.step)

    def save(self) -> None:
        """Writes a checkpoint."""
        with self.timer.stage("checkpoint"):
            self.checkpoints.write(self.step, self._save_learner, {"step": self.step})

    def _save_learner(self, directory: Path) -> None:
        (directory / "learner").mkdir()
        self.learners.save(directory / "learner")

    def keep_best(self, metrics: dict[str, float]) -> None:
        """Keeps the learner in RUN/best if its evaluation is the best so far. Raises BadInput for an unknown metric."""
        name = self.job.evaluate.best
        if name is None:
            return
        key = f"evaluate/{name.removeprefix('-')}"
        if key not in metrics:
            names = ", ".join(k.removeprefix("evaluate/") for k in metrics if k.startswith("evaluate/"))
            raise BadInput(f"evaluate.best: there is no held-out metric '{name}' (there are {names})")
        score = -metrics[key] if name.startswith("-") else metrics[key]
        best = self.best.latest()
        if best is None or score > json.loads((best / "state.json").read_text())["score"]:
            self.best.write(self.step, self._save_learner, {"step": self.step, "score": score})

    def load_best(self) -> None:
        """Loads the best model, if the job asks for it (evaluate.best)."""
        best = self.best.latest() if self.job.evaluate.best is not None else None
        if best is not None:
            self.learners.load(best / "learner")
            notice(f"the model is that of {best.name}, the best by {self.job.evaluate.best}")

    # evaluation -----------------------------------------------------------------------------------------------------

    def evaluate_step(self) -> dict[str, float]:
        """The held-out metrics after a step, if there are held-out examples; keeps the learner if they are the best."""
        if self.heldout is None:
            return {}
        with self.timer.stage("evaluate"):
            metrics = self.evaluate(self.heldout)
            self.keep_best(metrics)
        return metrics

    def evaluate(self, heldout: Batch) -> dict[str, float]:
        """The objective's metrics on held-out examples, and measures of the predictions.

        All of it is written to RUN/evaluation.json; the numbers are returned, as evaluate/....
        """
        batch = self.view(heldout, SEED_STEP)
        objective, rows = self.task.for_step(batch, self.log_probs)
        measures: dict[str, Any] = self.learners.evaluate(objective, ray.put(batch.take(rows)))
        if self.task.perplexity:
            measures["perplexity"] = math.exp(min(measures["loss/cross_entropy"], 700.0))
        if self.task.judge is not None:
            judged_rows = batch.take(np.arange(len(batch))[: self.task.num_judged])
            measures |= self.task.judge(self.learners.predict(objective, judged_rows))
        write_json(self.run.path / "evaluation.json", {"step": self.step, **measures})
        return {f"evaluate/{name}": value for name, value in measures.items() if isinstance(value, float)}
