"""The answers of a model to prompts, judged by reward terms: rollout and reward workers without a learner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from ..actors.group import WorkerGroup
from ..actors.placement import Placement, cluster_nodes, plan_placement, worker_demand
from ..batch import Batch
from ..config import BadInput, GenerationJob, ModelConfig
from ..data.prompts import Prompts, load_prompts
from ..models.load import is_encoder_decoder, read_context_length, resolve_model
from ..rewards.reward import scales
from ..run.events import notice
from ..train import evaluation as heldout
from ..train import roles
from ..train.dispatch import Dispatcher, RolloutRequest
from ..train.setup import decoding_remarks, reward_group, rollout_group

INITIAL = -1  # the version that a rollout worker holds before any sync: the model's own weights


class Answers(NamedTuple):
    """One row an answer, as :func:`rlhf_ray.train.evaluation.table` makes it, and the prompts."""

    table: pa.Table
    prompts: Prompts


def generate_answers(
    job: GenerationJob,
    model: ModelConfig,
    run_dir: Path,
    *,
    greedy: bool,
    check: Callable[[Prompts], None] = lambda _: None,
) -> Answers:
    """Answers of ``model`` to the job's prompts, with its terms' scores. ``check`` sees the prompts before actors start.

    Raises BadInput if the model, its engine or the data do not fit the job.
    """
    seq2seq = model.path is not None and is_encoder_decoder(resolve_model(model.path, model.revision))
    engine = job.rollout.engine
    if seq2seq and not engine.supports_encoder_decoders:
        raise BadInput(
            f"rollout.engine.type: {engine.type} does not generate with encoder-decoders, and {model.path} is one; "
            "set rollout.engine.type=transformers"
        )
    kind = "seq2seq" if seq2seq else "policy"
    local_model, tokenizer = roles.prepare(model, run_dir, job.run.seed, kind)
    directory = str(local_model.path)
    tokenizer.save_pretrained(str(run_dir / "tokenizer"))
    max_new_tokens = job.rollout.max_new_tokens
    context_length = read_context_length(directory)
    prompts = load_prompts(job.data, tokenizer, context_length, max_new_tokens, "data", seq2seq)
    check(prompts)
    demand = worker_demand(rollout=job.rollout, rewards=job.rewards)
    placement = Placement(plan_placement(job.cluster, demand, cluster_nodes()))
    max_tokens = job.data.max_prompt_tokens + max_new_tokens
    reward = reward_group(job.rewards, run_dir, job.cluster, placement)
    eos_ids = roles.eos_ids(tokenizer, directory)
    rollout = rollout_group(job.rollout, local_model, eos_ids, max_tokens, job.cluster, placement)
    try:
        reward.broadcast("check", max_tokens)
        for line in decoding_remarks(rollout):
            notice(line)
        batch = _collect(job, prompts, rollout=rollout, reward=reward, greedy=greedy)
    finally:
        for group in (rollout, reward):
            group.kill()
        placement.remove()
    # Scores of an ensemble's members are standardised, because it combines them; all other terms count as they score.
    members = {name for ensemble in job.rewards.ensembles for name in ensemble.members}
    statistics = {name: scale for name, scale in scales(batch.reward_parts, job.rewards).items() if name in members}
    table = heldout.table(batch, job.rewards.terms, job.rewards, statistics, prompts.rows, tokenizer)
    return Answers(table, prompts)


def _collect(job: GenerationJob, prompts: Prompts, *, rollout: WorkerGroup, reward: WorkerGroup, greedy: bool) -> Batch:
    """All answers, with their reward_parts."""
    dispatcher = Dispatcher(
        rollout=rollout,
        reward=reward,
        chunk_prompts=job.rollout.chunk_prompts,
        run_seed=job.run.seed,
        deadline_s=job.cluster.deadline_s,
    )
    request = RolloutRequest(
        step=heldout.SEED_STEP,
        version=INITIAL,
        prompts=range(len(prompts)),
        first_group=0,
        samples=job.samples,
        greedy=greedy,
    )
    return dispatcher.collect(request, prompts)
