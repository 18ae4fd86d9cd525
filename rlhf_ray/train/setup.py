"""Everything an RL job needs before its first step: data, models, actors. All bad input shows here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from ..actors.group import WorkerGroup
from ..actors.placement import Placement, cluster_nodes, plan_placement, worker_demand
from ..config import (
    ClusterConfig,
    FunctionReward,
    ModelConfig,
    NeuralReward,
    Reward,
    RewardsConfig,
    RLJob,
    RolloutConfig,
)
from ..data import examples
from ..data.prompts import Prompts, load_prompts
from ..data.sampler import Mixture, Sampler
from ..models.load import read_context_length, read_vocab_size, resolve_model
from ..rewards.worker import RewardWorker
from ..rollout.worker import EngineResources, RolloutWorker
from ..run.events import notice
from ..tasks import language_model
from ..weights.manifest import PROBE_LENGTH
from . import roles
from .learner_group import LearnerGroup


@dataclass(frozen=True)
class Ptx:
    """Pre-training text for the joint objective: a reference to its Batch, and which rows a mini-batch takes."""

    batch: Any
    sampler: Sampler | Mixture

    def rows(self, step: int, mini: int, num_minis: int, count: int) -> np.ndarray:
        """As many rows as the mini-batch has samples; a function of (step, mini) alone."""
        return self.sampler.indices((step * num_minis + mini) * count, count)


@dataclass(frozen=True)
class Setup:
    """The actors and data of an RL job."""

    learners: LearnerGroup
    rollout: WorkerGroup
    reward: WorkerGroup
    prompts: Prompts
    heldout: Prompts | None
    ptx: Ptx | None
    terms: list[Reward]
    num_trained: int
    columns_to_annotate: list[str]
    use_importance_weights: bool
    time_shared: bool
    vocab_size: int
    tokenizer: Any

    @property
    def reward_names(self) -> list[str]:
        """Names of the terms that are trained on."""
        return [t.name for t in self.terms[: self.num_trained]]


@contextmanager
def setup(job: RLJob, run_dir: Path, notes: Callable[[str], None]) -> Iterator[Setup]:
    """Spawns the actors for the time of the block. ``notes`` gets sentences about what was decided."""
    model, tokenizer = roles.prepare(job.model, run_dir, job.run.seed)
    directory = str(model.path)
    tokenizer.save_pretrained(str(run_dir / "tokenizer"))
    context = read_context_length(directory)
    prompts = load_prompts(job.data, tokenizer, context, job.rollout.max_new_tokens, "data")
    heldout = None
    if job.evaluate.data is not None:
        heldout = load_prompts(job.evaluate.data, tokenizer, context, job.rollout.max_new_tokens, "evaluate.data")
    rewards = job.all_rewards
    demand = worker_demand(learner=job.learner, rollout=job.rollout, rewards=rewards)
    chosen = plan_placement(job.cluster, demand, cluster_nodes())
    for line in chosen.lines():
        notes(line)
    placement = Placement(chosen)
    reward = reward_group(rewards, run_dir, job.cluster, placement)
    rollout = rollout_group(
        job.rollout, model, roles.eos_ids(tokenizer, directory), _max_length(job), job.cluster, placement
    )
    learners = LearnerGroup(job, roles.rl_roles(job, model, tokenizer), placement)
    try:
        reward.broadcast("check", _longest(job))
        learners.start()
        for line in learners.remarks():
            notes(line)
        for line in decoding_remarks(rollout):
            notes(line)
        yield Setup(
            learners, rollout, reward, prompts, heldout, _ptx(job, tokenizer, context), rewards.terms, len(job.rewards.terms),
            job.columns_to_annotate, _use_importance_weights(job),
            chosen.colocated and chosen.device == "cuda" and job.rollout.ahead == 0, read_vocab_size(directory), tokenizer,
        )  # fmt: skip
    finally:
        for group in (reward, rollout, learners):
            group.kill()
        placement.remove()


def reward_group(
    config: RewardsConfig, run_dir: Path, cluster: ClusterConfig, placement: Placement, has_policy: bool = True
) -> WorkerGroup:
    """The reward workers, with the policy's tokenizer in RUN/tokenizer if there is a policy.

    What user functions print goes to RUN/prints/worker-0/TERM.txt, one folder for each reward worker.
    """
    tokenizer = str(run_dir / "tokenizer") if has_policy else None
    if any(isinstance(term, FunctionReward) for term in config.terms):
        notice(f"what reward functions print is in {run_dir / 'prints'}")
    config = config.model_copy(update={"terms": [local(t) for t in config.terms]})
    return WorkerGroup(
        "reward",
        RewardWorker,
        config.num_workers,
        arguments=lambda index: {
            "config": config,
            "tokenizer": tokenizer,
            "device": placement.plan.device_of("reward"),
            "num_threads": placement.plan.num_threads,
            "prints": str(run_dir / "prints" / f"worker-{index}"),
        },
        options=lambda index: placement.options("reward", index),
        deadline_s=cluster.deadline_s,
        max_restarts=cluster.max_restarts,
    )


def rollout_group(
    config: RolloutConfig,
    model: ModelConfig,
    eos: tuple[int, ...],
    longest: int,
    cluster: ClusterConfig,
    placement: Placement,
) -> WorkerGroup:
    """The rollout workers, for sequences of up to ``longest`` tokens; until the first sync they hold the model's own weights."""
    resources = EngineResources(placement.plan.device_of("rollout"), placement.plan.num_threads, longest)
    return WorkerGroup(
        "rollout",
        RolloutWorker,
        config.num_workers,
        arguments=lambda _: {"config": config, "model": model, "eos": eos, "resources": resources},
        options=lambda index: placement.options("rollout", index),
        deadline_s=cluster.deadline_s,
        max_restarts=cluster.max_restarts,
    )


def decoding_remarks(rollout: WorkerGroup) -> list[str]:
    """Builds the engines; sentences on those that decode slower than they could. Raises BadInput, as the engines do."""
    remarks = [decoding.remark for decoding in rollout.broadcast("check")]
    return [remark for remark in dict.fromkeys(remarks) if remark]


def local(term: Reward) -> Reward:
    """The term with a path that means the same to a worker, whose working directory may be another."""
    if isinstance(term, NeuralReward):
        return term.model_copy(update={"path": resolve_model(term.path)})
    if isinstance(term, FunctionReward):
        return term.model_copy(update={"path": str(Path(term.path).expanduser().absolute())})
    return term


def _longest(job: RLJob) -> int:
    """Most tokens of prompt and response that a reward term can meet."""
    sections = [job.data] if job.evaluate.data is None else [job.data, job.evaluate.data]
    return max(section.max_prompt_tokens for section in sections) + job.rollout.max_new_tokens


def _max_length(job: RLJob) -> int:
    """The longest sequence an engine meets: a prompt with its response, or the probe of a sync."""
    prompts = [job.data, *([job.evaluate.data] if job.evaluate.data is not None else [])]
    return max(max(p.max_prompt_tokens for p in prompts) + job.rollout.max_new_tokens, PROBE_LENGTH)


def _use_importance_weights(job: RLJob) -> bool:
    """'auto' is off only where engine and learner share code and float32, and rollouts are never stale."""
    engine = job.rollout.engine
    shared = engine.shares_code_with_learner and job.model.dtype == "float32" == engine.dtype
    exact = shared and job.rollout.ahead == 0
    return {"on": True, "off": False, "auto": not exact}[job.algorithm.importance]


def _ptx(job: RLJob, tokenizer: Any, context: int) -> Ptx | None:
    if job.ptx_data is None:
        return None
    rows = examples.load(job.ptx_data, "ptx_data")
    batch = language_model.prepare(rows, tokenizer, min(context, job.learner.micro_batch_tokens)).batch
    return Ptx(ray.put(batch), rows.shares.sampler(batch.example_id, job.run.seed))
