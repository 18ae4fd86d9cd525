"""The answers of a model to prompts, judged by reward terms: rollout and reward workers without a learner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from ..actors.group import WorkerGroup
from ..actors.placement import worker_demand
from ..batch import Batch
from ..config import BadInput, GenerationJob, ModelConfig
from ..data.prompts import Prompts, load_prompts
from ..models.load import is_encoder_decoder, read_context_length, resolve_model
from ..rewards.columns import columns_by_name
from ..rewards.normalise import measure_scales
from ..train import roles
from ..train.dispatch import Dispatcher, RolloutRequest
from ..train.evaluation import SEED_STEP, completions_table
from ..train.startup import startup_part
from ..train.workers import Workers, build_engines, build_reward_terms

INITIAL = -1  # the version that a rollout worker holds before any sync: the model's own weights


class Answers(NamedTuple):
    """One row an answer, as :func:`rlhf_ray.train.evaluation.completions_table` makes it, and the prompts."""

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
    """Answers of ``model`` to the job's prompts, with the scores of its terms.

    ``check`` gets the prompts before actors start. Raises BadInput if the model, its engine or the data do not fit the
    job.
    """
    seq2seq = model.path is not None and is_encoder_decoder(resolve_model(model.path, model.revision))
    engine = job.rollout.engine
    if seq2seq and not engine.supports_encoder_decoders:
        raise BadInput(
            f"rollout.engine.type: {engine.type} does not generate with encoder-decoders, and {model.path} is one; "
            "set rollout.engine.type=transformers"
        )
    kind = "seq2seq" if seq2seq else "policy"
    with startup_part("reading the model's files and the data"):
        local_model, tokenizer = roles.prepare_model(model, run_dir, job.run.seed, kind)
        directory = str(local_model.path)
        tokenizer.save_pretrained(str(run_dir / "tokenizer"))
        max_new_tokens, context = job.rollout.max_new_tokens, read_context_length(directory)
        prompts = load_prompts(
            job.data, tokenizer, context, max_new_tokens, "data", seq2seq, columns_by_name(job.rewards.terms)
        )
        check(prompts)
        eos = roles.eos_ids(tokenizer, directory)
    max_tokens = job.data.max_prompt_tokens + max_new_tokens
    with Workers(job.cluster, worker_demand(rollout=job.rollout, rewards=job.rewards)) as workers:
        reward = workers.start_reward(job.rewards, run_dir)
        rollout = workers.start_rollout(job.rollout, local_model, eos, max_tokens)
        workers.wait()
        build_reward_terms(reward, max_tokens)
        build_engines(rollout)
        batch = _collect(job, prompts, rollout=rollout, reward=reward, greedy=greedy)
    # Scores of an ensemble's members are standardised, because it combines them; all other terms count as they score.
    members = {name for ensemble in job.rewards.ensembles for name in ensemble.members}
    reward_scales = {
        name: scale for name, scale in measure_scales(batch.reward_parts, job.rewards).items() if name in members
    }
    table = completions_table(
        batch,
        terms=job.rewards.terms,
        rewards=job.rewards,
        reward_scales=reward_scales,
        prompts=prompts.rows,
        tokenizer=tokenizer,
    )
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
        step=SEED_STEP,
        version=INITIAL,
        prompts=range(len(prompts)),
        first_group=0,
        samples=job.samples,
        greedy=greedy,
    )
    return dispatcher.collect(request, prompts)
