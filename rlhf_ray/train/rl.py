"""Reinforcement learning: rollout, reward, learner, and the one loop above them."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from ..actors.errors import DEAD
from ..actors.group import WorkerGroup
from ..actors.placement import cluster_nodes, reserved_devices
from ..actors.session import Stop
from ..algorithms.estimate import estimate_advantages, mean_sequence_kl
from ..algorithms.kl import KLController
from ..algorithms.registry import ALGORITHMS
from ..batch import Batch
from ..config import DPO, PPO, RLJob
from ..learner.objectives import LossTerm, Objective
from ..learner.policy import PolicyObjective, ValueObjective
from ..run.checkpoint import Checkpoints
from ..run.directory import RunDir
from ..run.events import notice
from ..run.outcome import Watch, unwatched
from ..run.reader import evaluation_file
from ..run.trajectories import trajectory_file, write_batch
from ..run.usage import Meter
from ..tasks.language_model import LanguageModelObjective
from ..tasks.preference import PairObjective
from ..weights.messages import SyncResult
from ..weights.transport import ObjectStoreTransport, WeightTransport
from . import evaluation as heldout
from . import step_metrics
from .dispatch import Dispatcher, RolloutRequest
from .learner_group import LearnerGroup
from .loop import StageTimer, StepEnd
from .reward_scale import RewardScale
from .rollout_queue import RolloutQueue
from .setup import Setup


class RL:
    """One RL job. ``step`` counts finished steps and equals the policy version that is published."""

    def __init__(self, job: RLJob, run: RunDir, setup: Setup, stop: Stop, watch: Watch = unwatched) -> None:
        self.job, self.run, self.setup = job, run, setup
        self.learners: LearnerGroup = setup.learners
        self.rollout: WorkerGroup = setup.rollout
        self.dispatcher = Dispatcher(
            rollout=setup.rollout,
            reward=setup.reward,
            chunk_prompts=job.rollout.chunk_prompts,
            run_seed=job.run.seed,
            deadline_s=job.cluster.deadline_s,
        )
        self.reward_scale = RewardScale(job.rewards)
        self.rollouts = RolloutQueue(job, self.dispatcher, setup.prompts, self.reward_scale)
        self.checkpoints = Checkpoints(run.path / "checkpoints", job.checkpoint.keep, run.id)
        self.transport: WeightTransport = ObjectStoreTransport(job.cluster.deadline_s)
        self.rollout.on_start = self.transport.resend
        self.kl = KLController(job.algorithm.kl)
        self.timer = StageTimer(run.events)
        self.step_end = StepEnd(
            job=job,
            run=run,
            meter=Meter(run, reserved_devices(setup.learners.plan, cluster_nodes()), job.cluster.price_per_gpu_hour),
            timer=self.timer,
            stop=stop,
            watch=watch,
            evaluate=self.evaluate,
            save=self.save,
            progress_line=partial(step_metrics.progress_line, job.num_steps),
        )
        self.step = 0
        self.evaluated_steps: list[int] = []  # whose evaluations are on disk

    # the loop -------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Trains to num_steps from wherever the run stands, and exports. A lost learner rank goes to the last checkpoint."""
        try:
            self.learners.recover(self._work)
        finally:
            self.rollouts.close()

    def _work(self) -> None:
        self.restore()
        with self.step_end.stop.deferred():
            self.loop()
        self.learners.export(self.run.path / "model", self.setup.tokenizer.save_pretrained)

    def loop(self) -> None:
        """Steps until num_steps; evaluates before the first and after the last."""
        self.timer.begin()
        if self.step < self.job.num_steps:
            with self.phase("rollout", self.rollout):
                self.rollouts.fetch(self.step)  # they freeze the reward's scale before anything is judged
        if not self.evaluated_steps:
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
            self.finish_step(metrics)

    def train_on(self, batch: Batch) -> dict[str, float]:
        """Annotates the step's rollouts, estimates advantages, writes the trajectories, learns. Returns the metrics."""
        with self.phase("annotate"):
            batch = self.learners.annotate(batch, self.job.rollout.temperature, self.setup.columns_to_annotate)
        metrics = step_metrics.rollout_metrics(batch, self.job, self.step, self.kl.coef, self.reward_scale.scales or {})
        batch, found = estimate_advantages(batch, self.job.algorithm, self.kl.coef, self.job.rollout.max_new_tokens)
        write_batch(trajectory_file(self.run.path, self.step), batch, self.setup.reward_names)
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
            policy = actor_objective(job, self.kl.coef, self.setup.use_importance_weights)
            terms = [LossTerm(objective=policy, coef=1.0, batch=reference, rows=rows)]
            if self.setup.ptx is not None:
                ptx = self.setup.ptx
                text_rows = [ptx.rows(self.step, i, len(rows), len(mini)) for i, mini in enumerate(rows)]
                terms.append(
                    LossTerm(objective=LanguageModelObjective(), coef=a.ptx_coef, batch=ptx.batch, rows=text_rows)
                )
            metrics |= self.learners.update("actor", terms)
        if self.kl.adapts:
            self.kl.update(mean_sequence_kl(batch), len(batch))
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
        with self.timer.stage(name):
            if self.setup.time_shared:
                self.rollout.call_with_restart("wake" if self.rollout in groups else "sleep")
            yield

    # state ----------------------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """The state of the last checkpoint; of nothing, a fresh start."""
        self.step = 0
        self.kl.reset()
        self.rollouts.reset()
        checkpoint = self.checkpoints.latest()
        if checkpoint is not None:
            state = json.loads((checkpoint / "state.json").read_text())
            self.step, self.kl.coef = state["step"], state["kl_coef"]
            self.learners.load(checkpoint / "learner")
            self.rollouts.restore(checkpoint / "rollouts", state["rollouts"])
            notice(f"going on from {checkpoint.name} in {self.run.path}")
        self.evaluated_steps = heldout.prune(self.run.path, self.step, self.job.evaluate)
        self.step_end.open(self.step)
        with self.phase("sync", self.rollout):
            self.sync_weights(self.step)

    def finish_step(self, metrics: dict[str, float]) -> None:
        """What follows a step, with what the meter must know of it."""
        self.step_end.finish(
            self.step,
            metrics,
            metrics.get("rollout/tokens", 0.0),
            engines_s=metrics.get("rollout/engine_seconds", 0.0),
            reward=metrics.get("reward/mean"),
        )

    def save(self) -> None:
        """Writes a checkpoint of everything the next step depends on. Nothing is in flight here."""

        def fill(directory: Path) -> None:
            for name in ("learner", "rollouts"):
                (directory / name).mkdir()
            self.learners.save(directory / "learner")
            state["rollouts"] = self.rollouts.save(directory / "rollouts")

        state: dict[str, Any] = {"step": self.step, "kl_coef": self.kl.coef}
        with self.phase("checkpoint"):
            self.checkpoints.write(self.step, fill, state)

    # evaluation -----------------------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, float]:
        """Held-out prompts with the published weights, written to RUN/evaluations; nothing if there are none."""
        setup, config = self.setup, self.job.evaluate
        if setup.heldout is None:
            return {}
        with self.phase("evaluate", self.rollout):
            request = RolloutRequest(
                step=heldout.SEED_STEP,
                version=self.step,
                prompts=range(len(setup.heldout)),
                first_group=0,
                samples=1,
                greedy=config.greedy,
            )
            batch = self.dispatcher.collect(request, setup.heldout)
            self.dispatcher.take_counters()  # no step counts these rollouts as its own
            batch = self.learners.annotate(batch, self.job.rollout.temperature, ["old_log_probs", "ref_log_probs"])
            rows = heldout.table(
                batch, setup.terms, self.job.rewards, self.reward_scale.scales, setup.heldout.rows, setup.tokenizer
            )
            heldout.write(evaluation_file(self.run.path, self.step), rows, config)
        self.evaluated_steps.append(self.step)
        metrics = heldout.metrics(rows)
        if self.job.log.progress:
            notice(step_metrics.evaluation_line(self.step, metrics))
        return metrics


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
