"""Reinforcement learning: rollout, reward, learner, and the one loop above them."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray

from ..actors.group import DEAD, WorkerGroup
from ..actors.placement import cluster_nodes, reserved_devices
from ..actors.session import Stop
from ..algorithms.estimate import estimate_advantages, token_kl
from ..algorithms.kl import adapt
from ..algorithms.registry import ALGORITHMS
from ..batch import Batch
from ..config import DPO, PPO, AdaptiveKL, RLJob
from ..learner.objectives import LossTerm, Objective
from ..learner.policy import PolicyObjective, ValueObjective
from ..run.checkpoint import Checkpoints
from ..run.directory import RunDir
from ..run.events import notice
from ..run.outcome import Stopped, Watch, unwatched
from ..run.reader import evaluation_file, evaluation_files
from ..run.sinks import Sinks, open_sinks
from ..run.trajectories import trajectory_file, write_batch
from ..run.usage import Meter
from ..tasks.language_model import LanguageModelObjective
from ..tasks.preference import PairObjective
from ..weights.messages import SyncResult
from ..weights.transport import ObjectStoreTransport, WeightTransport
from . import evaluation as heldout
from . import step_metrics
from .dispatch import Collector, Order
from .learner_group import LearnerGroup
from .loop import StageTimer
from .rollout_queue import Rollouts
from .setup import Setup


class RL:
    """One RL job. ``step`` counts finished steps and equals the policy version that is published."""

    def __init__(self, job: RLJob, run: RunDir, setup: Setup, stop: Stop, watch: Watch = unwatched) -> None:
        self.job, self.held, self.run, self.setup, self.stop, self.watch = job, run, run.path, setup, stop, watch
        self.learners: LearnerGroup = setup.learners
        self.rollout: WorkerGroup = setup.rollout
        collector = Collector(
            setup.rollout, setup.reward, job.rollout.chunk_prompts, job.run.seed, job.cluster.deadline_s
        )
        self.collector = collector
        self.rollouts = Rollouts(job, collector, setup.prompts)
        self.checkpoints = Checkpoints(self.run / "checkpoints", job.checkpoint.keep, run.id)
        self.meter = Meter(run, reserved_devices(setup.learners.plan, cluster_nodes()), job.cluster.price_per_gpu_hour)
        self.transport: WeightTransport = ObjectStoreTransport(job.cluster.deadline_s)
        self.rollout.on_start = self.transport.resend
        self.sinks: Sinks | None = None
        self.timer = StageTimer()
        self.step, self.kl_coef = 0, job.algorithm.kl.coef

    # the loop -------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Trains to num_steps from wherever the run stands, and exports. A lost learner rank goes to the last checkpoint."""
        try:
            self.learners.recover(self._work)
        finally:
            self.rollouts.close()

    def _work(self) -> None:
        self.restore()
        self.loop()
        self.learners.export(self.run / "model", self.setup.tokenizer.save_pretrained)

    def loop(self) -> None:
        """Steps until num_steps; evaluates before the first and after the last."""
        self.timer.begin()
        if self.step < self.job.num_steps:
            with self.phase("rollout", self.rollout):
                self.rollouts.fetch(self.step)  # they freeze the reward's scale before anything is judged
        if not evaluation_files(self.run):
            with self.phase("evaluate", self.rollout):
                self.evaluate()
        while self.step < self.job.num_steps:
            with self.phase("rollout", self.rollout):
                self.rollouts.prefetch(self.step)
                batch, metrics = self.rollouts.take(self.step)
            if len(batch):
                metrics |= self.train_on(batch)
            else:
                notice(f"step {self.step + 1}: no group's rewards vary, nothing is learnt; try more prompts or samples")
            with self.phase("wait"):
                self.rollouts.drain()
            with self.phase("sync", self.rollout):
                metrics |= self.sync_weights(self.step + 1)
            self.step += 1
            metrics["time/step"] = self.timer.step_seconds()
            self.finish_step(metrics)

    def train_on(self, batch: Batch) -> dict[str, float]:
        """Annotates the step's rollouts, estimates advantages, writes the trajectories, learns. Returns the metrics."""
        with self.phase("annotate"):
            batch = self.learners.annotate(batch, self.job.rollout.temperature, self.setup.columns_to_annotate)
        metrics = step_metrics.rollout_metrics(batch, self.job, self.step, self.kl_coef, self.rollouts.statistics or {})
        batch, found = estimate_advantages(batch, self.job.algorithm, self.kl_coef, self.job.rollout.max_new_tokens)
        write_batch(trajectory_file(self.run, self.step), batch, self.setup.reward_names)
        with self.phase("learn"):
            return metrics | found | (self.learn(batch) if len(batch) else {})

    def learn(self, batch: Batch) -> dict[str, float]:
        """Updates the critic and the actor on the step's samples; moves the KL coefficient."""
        a, job = self.job.algorithm, self.job
        metrics: dict[str, float] = {}
        rows, reference = self.mini_batches(len(batch)), ray.put(batch)
        if isinstance(a, PPO):
            value = LossTerm(objective=ValueObjective(a.value_clip), coef=1.0, batch=reference, rows=rows)
            metrics |= self.learners.update("critic", [value])
        if not isinstance(a, PPO) or self.step >= job.critic.warmup_steps:
            policy = actor_objective(job, self.kl_coef, self.setup.use_importance_weights)
            terms = [LossTerm(objective=policy, coef=1.0, batch=reference, rows=rows)]
            if self.setup.ptx is not None:
                ptx = self.setup.ptx
                text_rows = [ptx.rows(self.step, i, len(rows), len(mini)) for i, mini in enumerate(rows)]
                terms.append(
                    LossTerm(objective=LanguageModelObjective(), coef=a.ptx_coef, batch=ptx.batch, rows=text_rows)
                )
            metrics |= self.learners.update("actor", terms)
        if isinstance(a.kl.controller, AdaptiveKL) and self.kl_coef > 0:
            kl = float(token_kl(batch).sum()) / len(batch)
            self.kl_coef = adapt(self.kl_coef, kl, a.kl.controller.target, a.kl.controller.horizon, len(batch))
        return step_metrics.with_effective_samples(metrics)

    def mini_batches(self, num_rows: int) -> list[np.ndarray]:
        """Rows of each optimizer step of this step: for each epoch a shuffle, cut into num_mini_batches."""
        a = self.job.algorithm
        draw = np.random.default_rng([self.job.run.seed, self.step])
        cut = [np.array_split(draw.permutation(num_rows), a.num_mini_batches) for _ in range(a.epochs)]
        return [rows for epoch in cut for rows in epoch if len(rows)]

    # weights --------------------------------------------------------------------------------------------------------

    def sync_weights(self, version: int) -> dict[str, float]:
        """Sends the actor's weights to every rollout worker, verified. Returns the metrics of the sync."""
        began = time.monotonic()
        messages = self.learners.sync_weights(version, self.job.rollout.temperature, self.setup.vocab_size)
        self.transport.send(messages, self.rollout.actors)
        results = [self._sync_result(index) for index in range(len(self.rollout))]
        return step_metrics.sync_metrics(results, time.monotonic() - began)

    def _sync_result(self, index: int) -> SyncResult:
        """What a rollout worker says of the sync; if it died, its replacement."""
        while True:
            worker = self.rollout.actors[index]
            try:
                return self.transport.receive(worker)
            except DEAD:
                self.rollout.replace(index, worker)

    @contextlib.contextmanager
    def phase(self, name: str, *groups: WorkerGroup) -> Iterator[None]:
        """Times a stage. Where GPUs are shared in turns, rollout workers are awake if among ``groups`` and asleep if not."""
        self.held.events.at(stage=name)
        with self.timer.stage(name):
            if self.setup.time_shared:
                self.rollout.call_with_restart("wake" if self.rollout in groups else "sleep")
            yield

    # state ----------------------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """The state of the last checkpoint; of nothing, a fresh start."""
        self.step, self.kl_coef = 0, self.job.algorithm.kl.coef
        self.rollouts.reset()
        found = self.checkpoints.latest()
        if found is not None:
            state = json.loads((found / "state.json").read_text())
            self.step, self.kl_coef = state["step"], state["kl_coef"]
            self.learners.load(found / "learner")
            self.rollouts.restore(found / "rollouts", state["rollouts"])
            notice(f"going on from {found.name} in {self.run}")
        heldout.prune(self.run, self.step, self.job.evaluate)
        if self.sinks is not None:
            self.sinks.close()
        self.sinks = open_sinks(self.job, self.held, self.step)
        with self.phase("sync", self.rollout):
            self.sync_weights(self.step)

    def finish_step(self, metrics: dict[str, float]) -> None:
        """Logs the step; evaluates, checkpoints and stops where it is time to."""
        job, last = self.job, self.step == self.job.num_steps
        stopping = self.stop.requested and not last
        evaluated = last or bool(job.evaluate.every and self.step % job.evaluate.every == 0)
        if evaluated:
            with self.phase("evaluate", self.rollout):
                metrics |= self.evaluate()
        tokens = metrics.get("rollout/tokens", 0.0)
        if tokens:
            metrics["step/tokens_per_second"] = tokens / max(metrics["time/step"], 1e-9)
        metrics |= self.timer.metrics()
        engines, reward = metrics.get("rollout/engine_seconds", 0.0), metrics.get("reward/mean")
        metrics |= self.meter.step(self.timer.seconds, tokens, engines_s=engines, reward=reward)
        self.timer.begin()
        assert self.sinks is not None
        # The line precedes the checkpoint: a run that resumes from it keeps the lines before its step and needs all of them.
        # So the line cannot hold this checkpoint's seconds. The next line does, and log.jsonl and usage.json the last one's.
        self.sinks.write(self.step - 1, metrics)
        if last or stopping or (job.checkpoint.every and self.step % job.checkpoint.every == 0):
            with self.phase("checkpoint"):
                self.save()
        if last or stopping:
            self.meter.finish(self.timer.seconds)
        if job.log.progress:
            print(step_metrics.progress_line(self.step, job.num_steps, metrics), flush=True)
        if evaluated:
            self.watch(self.step, metrics)
        self.timer.start()
        if stopping:
            raise Stopped(f"stopped after step {self.step} of {job.num_steps}; the same command goes on from there")

    def save(self) -> None:
        """Writes a checkpoint of everything the next step depends on. Nothing is in flight here."""

        def fill(directory: Path) -> None:
            for name in ("learner", "rollouts"):
                (directory / name).mkdir()
            self.learners.save(directory / "learner")
            state["rollouts"] = self.rollouts.save(directory / "rollouts")

        state: dict[str, Any] = {"step": self.step, "kl_coef": self.kl_coef}
        self.checkpoints.write(self.step, fill, state)

    # evaluation -----------------------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, float]:
        """Held-out prompts with the published weights, written to RUN/evaluations."""
        s, e = self.setup, self.job.evaluate
        if s.heldout is None:
            return {}
        order = Order(heldout.SEED_STEP, self.step, range(len(s.heldout)), 0, 1, greedy=e.greedy)
        batch = self.collector.collect(order, s.heldout)
        self.collector.take_counters()  # of these rollouts, which no step is to count as its own
        batch = self.learners.annotate(batch, self.job.rollout.temperature, ["old_log_probs", "ref_log_probs"])
        rows = heldout.table(batch, s.terms, self.job.rewards, self.rollouts.statistics, s.heldout.rows, s.tokenizer)
        heldout.write(evaluation_file(self.run, self.step), rows, e)
        found = heldout.metrics(rows)
        if self.job.log.progress:
            notice(step_metrics.evaluation_line(self.step, found))
        return found


def actor_objective(job: RLJob, kl_coef: float, use_importance_weights: bool) -> Objective:
    """What the actor minimises on the samples of a step."""
    if ALGORITHMS[job.algorithm.type].paired:
        return PairObjective(DPO(beta=kl_coef))
    return PolicyObjective(
        config=job.algorithm,
        kl_coef=kl_coef,
        temperature=job.rollout.temperature,
        max_new_tokens=job.rollout.max_new_tokens,
        use_importance_weights=use_importance_weights,
    )
