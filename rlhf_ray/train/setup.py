"""What a training needs before its first step: data, models and workers. All bad input shows here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from ..actors.group import WorkerGroup
from ..actors.object_store import store_remark
from ..actors.placement import Plan, cluster_nodes, worker_demand
from ..config import RLJob, Supervised
from ..data import examples
from ..data.context import check_row_context
from ..data.prompts import Prompts, load_prompts
from ..data.sampler import Mixture, Sampler
from ..data.stream import Stream
from ..models.directory import num_saved_parameters
from ..models.load import read_context_length, read_vocab_size
from ..rewards.columns import columns_by_name
from ..run.events import notice
from ..tasks import language_model
from ..tasks.base import Task
from ..tasks.registry import task_kind
from . import roles
from .learner_group import LearnerGroup
from .startup import startup_part
from .workers import Workers, build_engines, build_reward_terms, load_learner_models


@dataclass(frozen=True, kw_only=True)
class PretrainingText:
    """Text for the joint objective of RL and language modelling (ptx_data).

    ``batch`` is a reference to its Batch; ``sampler`` draws the rows of a mini-batch.
    """

    batch: Any
    sampler: Sampler | Mixture

    def rows(self, step: int, mini_batch: int, num_mini_batches: int, count: int) -> np.ndarray:
        """(count,) rows for a mini-batch of ``count`` samples; a function of (step, mini_batch) alone."""
        return self.sampler.indices((step * num_mini_batches + mini_batch) * count, count)


@dataclass(frozen=True, kw_only=True)
class RLActors:
    """The workers of an RL job. ``time_shared``: its roles use the same GPUs in turns."""

    learners: LearnerGroup
    rollout: WorkerGroup
    reward: WorkerGroup
    time_shared: bool


@dataclass(frozen=True, kw_only=True)
class RLData:
    """What an RL job reads, and the tokenizer that it is read with. ``vocab_size`` is the model's."""

    prompts: Prompts
    heldout: Prompts | None
    pretraining: PretrainingText | None
    tokenizer: Any
    vocab_size: int


@dataclass(frozen=True, kw_only=True)
class RLSetup:
    """An RL job that is ready for its first step."""

    actors: RLActors
    data: RLData


@dataclass(frozen=True, kw_only=True)
class SupervisedSetup:
    """A supervised job that is ready for its first step."""

    learners: LearnerGroup
    task: Task
    tokenizer: Any


@contextmanager
def rl_setup(job: RLJob, run_dir: Path) -> Iterator[RLSetup]:
    """Loads data and models and starts the workers of an RL job, for the time of the block."""
    with startup_part("reading the model's files and the data"):
        model, tokenizer = roles.prepare_model(job.model, run_dir, job.run.seed)
        tokenizer.save_pretrained(str(run_dir / "tokenizer"))
        data = load_rl_data(job, str(model.path), tokenizer)
        eos = roles.eos_ids(tokenizer, str(model.path))
        model_roles = roles.rl_roles(job, model, tokenizer)
    demand = worker_demand(learner=job.learner, rollout=job.rollout, rewards=job.all_rewards)
    with Workers(job.cluster, demand) as workers:
        remark_object_store(job, str(model.path))
        reward = workers.start_reward(job.all_rewards, run_dir)
        rollout = workers.start_rollout(job.rollout, model, eos, longest_sequence(job))
        learners = workers.start_learners(job, model_roles)
        workers.wait()
        time_shared = takes_turns(workers.plan, job)
        build_reward_terms(reward, longest_sequence(job))
        build_engines(rollout)
        if time_shared:  # the learner's models would not fit next to awake engines, which need their memory to be free
            rollout.broadcast("keep_awake", ())
            reward.broadcast("keep_awake", False)
        load_learner_models(learners)
        actors = RLActors(learners=learners, rollout=rollout, reward=reward, time_shared=time_shared)
        yield RLSetup(actors=actors, data=data)


def takes_turns(plan: Plan, job: RLJob) -> bool:
    """Whether roles use the same GPUs one after the other, so that each must make room for the next."""
    return plan.colocated and plan.device == "cuda" and job.rollout.ahead == 0


def remark_object_store(job: RLJob, directory: str) -> None:
    """Says so if Ray's object store is too small for the syncs of the model in ``directory`` and a step's samples."""
    num_parameters = num_saved_parameters(directory)
    if num_parameters is None:
        return
    samples = job.rollout.prompts_per_step * job.algorithm.group_size * (1 + job.rollout.ahead)
    bytes_per_number = 4 if job.model.dtype == "float32" else 2
    remark = store_remark(bytes_per_number * num_parameters, samples * longest_sequence(job), cluster_nodes())
    if remark is not None:
        notice(remark)


def load_rl_data(job: RLJob, directory: str, tokenizer: Any) -> RLData:
    """The data of an RL job, for the model in ``directory``."""
    context, max_new_tokens = read_context_length(directory), job.rollout.max_new_tokens
    heldout, columns = None, columns_by_name(job.all_rewards.terms)
    prompts = load_prompts(job.data, tokenizer, context, max_new_tokens, "data", columns=columns)
    if job.evaluate.data is not None:
        heldout = load_prompts(job.evaluate.data, tokenizer, context, max_new_tokens, "evaluate.data", columns=columns)
    return RLData(
        prompts=prompts,
        heldout=heldout,
        pretraining=load_pretraining_text(job, tokenizer, context),
        tokenizer=tokenizer,
        vocab_size=read_vocab_size(directory),
    )


def load_pretraining_text(job: RLJob, tokenizer: Any, context: int) -> PretrainingText | None:
    """ptx_data in sequences of at most ``context`` tokens, and of a micro-batch; None if the job has none."""
    if job.ptx_data is None:
        return None
    rows = examples.load(job.ptx_data, "ptx_data")
    batch = language_model.prepare(rows, tokenizer, min(context, job.learner.micro_batch_tokens)).batch
    return PretrainingText(batch=ray.put(batch), sampler=rows.shares.sampler(batch.example_id, job.run.seed))


def longest_sequence(job: RLJob) -> int:
    """Most tokens of a prompt with its response, training or held-out."""
    sections = [job.data] if job.evaluate.data is None else [job.data, job.evaluate.data]
    return max(section.max_prompt_tokens for section in sections) + job.rollout.max_new_tokens


def use_importance_weights(job: RLJob) -> bool:
    """'auto' means no only if engine and learner share code and float32, and rollouts are never stale.

    The job's dtypes are resolved: see :func:`resolve_dtypes`.
    """
    engine = job.rollout.engine
    shared = engine.shares_code_with_learner and job.model.dtype == "float32" == engine.dtype
    exact = shared and job.rollout.ahead == 0
    return {"on": True, "off": False, "auto": not exact}[job.algorithm.importance]


@contextmanager
def supervised_setup(job: Supervised, run_dir: Path) -> Iterator[SupervisedSetup]:
    """Loads data and model and starts the learner of a supervised job, for the time of the block.

    Raises BadInput if ``max_length`` exceeds the model's context, or the rows do not fit the task.
    """
    with startup_part("reading the model's files and the data"):
        rows = Stream(job.data, "data", run_dir) if job.data.streamed else examples.load(job.data, "data")
        heldout = examples.load(job.evaluate.data, "evaluate.data") if job.evaluate.data is not None else None
        kind = task_kind(job)
        labels = kind.labels(job, rows)
        model, tokenizer = roles.prepare_model(job.model, run_dir, job.run.seed, kind.model, labels)
        check_row_context(job.max_length, read_context_length(str(model.path)))
        task = kind.build(job, rows, heldout, tokenizer)
    with Workers(job.cluster, worker_demand(learner=job.learner)) as workers:
        learners = workers.start_learners(job, [roles.supervised_role(job, kind, model, labels)])
        workers.wait()
        load_learner_models(learners)
        yield SupervisedSetup(learners=learners, task=task, tokenizer=tokenizer)
