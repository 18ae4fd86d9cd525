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
from ray.exceptions import GetTimeoutError

from ..actors.errors import DEAD
from ..actors.group import WorkerGroup
from ..actors.placement import cluster_nodes, reserved_devices
from ..actors.session import Stop
from ..algorithms.estimate import estimate_advantages, mean_sequence_kl
from ..algorithms.kl import KLController
from ..algorithms.registry import ALGORITHMS
from ..batch import Batch
from ..config import DPO, PPO, RLJob, resolve_dtypes
from ..learner.objectives import LossTerm, Objective
from ..learner.policy import PolicyObjective, ValueObjective
from ..rewards.normalise import RewardScale
from ..run.checkpoint import Checkpoints
from ..run.directory import RunDir
from ..run.events import notice
from ..run.outcome import Watch, unwatched
from ..run.reader import evaluation_file
from ..run.trajectories import trajectory_file, write_batch
from ..run.usage import Meter
from ..tasks.language_model import LanguageModelObjective
from ..tasks.preference import PairObjective
from ..weights.manifest import PROBE_LENGTH, probe_tokens
from ..weights.messages import SyncResult
from ..weights.transport import ObjectStoreTransport, WeightTransport
from . import step_metrics
from .device_memory import STAGES, DeviceMemory, Movers
from .dispatch import Dispatcher, RolloutRequest
from .evaluation import SEED_STEP, completions_table, evaluation_metrics, remove_outdated, write_evaluation
from .learner_group import LearnerGroup, sync_tolerance
from .loop import StageTimer, StepEnd
from .rollout_queue import RolloutQueue
from .setup import PretrainingText, RLSetup, longest_sequence, use_importance_weights
from .startup import startup_part


class RL:
    """One RL job. ``step`` counts finished steps and equals the policy version that is published."""

    def __init__(self, job: RLJob, run: RunDir, setup: RLSetup, stop: Stop, watch: Watch = unwatched) -> None:
        self.learners: LearnerGroup = setup.actors.learners
        self.job = resolve_dtypes(job, self.learners.plan.device)
        self.run, self.actors, self.data = run, setup.actors, setup.data
        self.probes = probe_tokens(self.data.prompts.tokens, min(PROBE_LENGTH, longest_sequence(job)))
        self.rollout: WorkerGroup = setup.actors.rollout
        self.dispatcher = Dispatcher(
            rollout=self.rollout,
            reward=self.actors.reward,
            chunk_prompts=job.rollout.chunk_prompts,
            run_seed=job.run.seed,
            deadline_s=job.cluster.deadline_s,
        )
        self.reward_scale = RewardScale(job.rewards)
        self.rollouts = RolloutQueue(job, self.dispatcher, self.data.prompts, self.reward_scale)
        self.checkpoints = Checkpoints(run.path / "checkpoints", job.checkpoint.keep, run.id)
        self.transport: WeightTransport = ObjectStoreTransport(job.cluster.deadline_s)
        self.rollout.on_start = self.transport.resend
        self.memory = DeviceMemory(
            Movers(
                engine=lambda parts, keep_weights: self.rollout.call_with_restart("keep_awake", parts, keep_weights),
                learner=self.learners.keep_awake,
                reward_models=lambda awake: self.actors.reward.call_with_restart("keep_awake", awake),
            ),
            time_shared=self.actors.time_shared,
            offload=job.learner.offload,
            offload_reference=job.reference.offload,
        )
        self.kl = KLController(job.algorithm.kl)
        self.timer = StageTimer(run.events)
        self.step_end = StepEnd(
            job=job,
            run=run,
            meter=Meter(run, reserved_devices(self.learners.plan, cluster_nodes()), job.cluster.price_per_gpu_hour),
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
        """Trains from the last checkpoint to num_steps and exports.

        If a learner rank is lost, all are restarted from the last checkpoint.
        """
        try:
            self.learners.recover(self._work, self.memory.before_restart)
        finally:
            self.rollouts.close()

    def _work(self) -> None:
        self.restore()
        with self.step_end.stop.deferred():
            self.loop()
        self.memory.enter("export")
        self.learners.export(self.run.path / "model", self.data.tokenizer.save_pretrained)

    def loop(self) -> None:
        """Steps until num_steps; evaluates before the first and after the last."""
        self.timer.begin()
        if self.step < self.job.num_steps:
            with self.phase("rollout"):
                self.rollouts.fetch(self.step)  # they freeze the reward's scale before anything is judged
        if not self.evaluated_steps:
            self.evaluate()
        while self.step < self.job.num_steps:
            with self.phase("rollout"):
                self.rollouts.prefetch(self.step)
                batch, metrics = self.rollouts.take(self.step)
            if len(batch):
                metrics |= self.train_on(batch)
            else:
                notice(f"step {self.step + 1}: no group's rewards vary, nothing is learnt; try more prompts or samples")
            with self.phase("wait"):
                self.rollouts.drain()
            with self.phase("sync"):
                metrics |= self.sync_weights(self.step + 1)
            self.step += 1
            self.finish_step(metrics)

    def train_on(self, batch: Batch) -> dict[str, float]:
        """Annotates the step's rollouts, estimates advantages, writes the trajectories, learns. Returns the metrics."""
        with self.phase("annotate"):
            batch = self.learners.annotate(batch, self.job.rollout.temperature, self.job.columns_to_annotate)
        metrics = step_metrics.rollout_metrics(batch, self.job, self.step, self.kl.coef, self.reward_scale.scales or {})
        batch, estimate_metrics = estimate_advantages(
            batch, self.job.algorithm, self.kl.coef, self.job.rollout.max_new_tokens
        )
        metrics |= estimate_metrics
        names = [term.name for term in self.job.rewards.terms]
        write_batch(trajectory_file(self.run.path, self.step), batch, names)
        with self.phase("learn"):
            if len(batch):
                metrics |= self.learn(batch)
        return metrics

    def learn(self, batch: Batch) -> dict[str, float]:
        """Updates the critic and the actor on the step's samples; moves the KL coefficient."""
        job, algorithm = self.job, self.job.algorithm
        metrics: dict[str, float] = {}
        rows, reference = self.mini_batches(len(batch)), ray.put(batch)
        match algorithm:
            case PPO(value_clip=value_clip):
                value = LossTerm(objective=ValueObjective(value_clip), coef=1.0, batch=reference, rows=rows)
                metrics |= self.learners.update("critic", [value])
        if not algorithm.has_critic or self.step >= job.critic.warmup_steps:
            policy = actor_objective(job, self.kl.coef, use_importance_weights(job))
            terms = [LossTerm(objective=policy, coef=1.0, batch=reference, rows=rows)]
            if self.data.pretraining is not None:
                terms.append(self._pretraining_term(self.data.pretraining, rows))
            metrics |= self.learners.update("actor", terms)
            if self.kl.adapts:  # not while only the critic learns: the policy's KL says nothing then
                self.kl.update(mean_sequence_kl(batch), len(batch))
        return step_metrics.with_effective_samples(metrics)

    def _pretraining_term(self, text: PretrainingText, mini_batches: list[np.ndarray]) -> LossTerm:
        """The cross-entropy on as many rows of text as each mini-batch has samples."""
        return LossTerm(
            objective=LanguageModelObjective(),
            coef=self.job.algorithm.ptx_coef,
            batch=text.batch,
            rows=[text.rows(self.step, i, len(mini_batches), len(rows)) for i, rows in enumerate(mini_batches)],
        )

    def mini_batches(self, num_rows: int) -> list[np.ndarray]:
        """Rows of each optimizer step of this step: for each epoch a shuffle, cut into num_mini_batches."""
        epochs, num_mini_batches = self.job.algorithm.epochs, self.job.algorithm.num_mini_batches
        generator = np.random.default_rng([self.job.run.seed, self.step])
        splits = [np.array_split(generator.permutation(num_rows), num_mini_batches) for _ in range(epochs)]
        return [rows for split in splits for rows in split if len(rows)]

    # weights --------------------------------------------------------------------------------------------------------

    def sync_weights(self, version: int) -> dict[str, float]:
        """Sends the actor's weights to every rollout worker, verified. Returns the metrics of the sync."""
        began = time.monotonic()
        temperature, tolerance = self.job.rollout.temperature, sync_tolerance(self.job)
        names = self.job.rollout.engine.weight_names
        messages = self.learners.sync_weights(version, temperature, self.probes, tolerance, names)
        self.transport.send(messages, self.rollout.actors)
        results = [self._sync_result(index) for index in range(len(self.rollout))]
        for index, result in enumerate(results):
            if result.misses:
                again = "; its weights were loaded again" if result.misses > 1 else ""
                notice(f"version {version}: rollout worker {index} missed the probe, and then passed{again}")
        return step_metrics.sync_metrics(results, time.monotonic() - began)

    def _sync_result(self, index: int) -> SyncResult:
        """What a rollout worker says of the sync; if it died, its replacement."""
        while True:
            worker = self.rollout.actors[index]
            try:
                return self.transport.receive(worker)
            except DEAD:
                self.rollout.replace(index, worker)
            except GetTimeoutError:
                raise self.rollout.timeout("receive", [index]) from None

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a stage. If it needs a device, the roles that it needs are on it and the others have made room."""
        with self.timer.stage(name):
            if name in STAGES:
                self.memory.enter(name)
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
            self.memory.enter("checkpoint")
            self.learners.load(checkpoint / "learner")
            self.rollouts.restore(checkpoint / "rollouts", state["rollouts"])
            notice(f"going on from {checkpoint.name} in {self.run.path}")
        self.evaluated_steps = remove_outdated(self.run.path, self.step, self.job.evaluate)
        self.step_end.open(self.step)
        with startup_part("sending the weights to the rollout workers"), self.phase("sync"):
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
        heldout, config = self.data.heldout, self.job.evaluate
        if heldout is None:
            return {}
        with self.phase("evaluate"):
            request = RolloutRequest(
                step=SEED_STEP,
                version=self.step,
                prompts=range(len(heldout)),
                first_group=0,
                samples=1,
                greedy=config.greedy,
            )
            batch = self.dispatcher.collect(request, heldout)
            self.dispatcher.take_counters()  # no step counts these rollouts as its own
            self.memory.enter("annotate_heldout")
            batch = self.learners.annotate(batch, self.job.rollout.temperature, ["old_log_probs", "ref_log_probs"])
            completions = completions_table(
                batch,
                terms=self.job.all_rewards.terms,
                rewards=self.job.rewards,
                reward_scales=self.reward_scale.scales,
                prompts=heldout.rows,
                tokenizer=self.data.tokenizer,
            )
            write_evaluation(evaluation_file(self.run.path, self.step), completions, config)
        self.evaluated_steps.append(self.step)
        metrics = evaluation_metrics(completions)
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
