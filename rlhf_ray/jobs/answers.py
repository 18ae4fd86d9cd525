"""Answers of a model to prompts, judged by reward terms: rollout and reward workers without a learner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from ..actors.placement import Placement, cluster_nodes, plan_placement, worker_demand
from ..config import Answers, BadInput, ModelConfig
from ..models import load as models
from ..rewards.reward import scales
from ..run.events import notice
from ..train import evaluation as heldout
from ..train import roles
from ..train.dispatch import Collector, Order, Prompts
from ..train.setup import decoding_remarks, load_prompts, reward_group, rollout_group

INITIAL = -1  # the version that a rollout worker holds before any sync: the model's own weights


def answers(
    job: Answers, which: ModelConfig, run_dir: Path, greedy: bool, check: Callable[[Prompts], None] = lambda _: None
) -> tuple[pa.Table, Prompts]:
    """One row an answer (heldout.table), and the prompts that were asked. ``check`` sees these before anything starts."""
    sources = which.path is not None and models.is_encoder_decoder(models.resolve(which.path, which.revision))
    engine = job.rollout.engine
    if sources and not engine.supports_encoder_decoders:
        raise BadInput(
            f"rollout.engine.type: {engine.type} does not generate with encoder-decoders, and {which.path} is one; "
            "set rollout.engine.type=transformers"
        )
    model, tokenizer = roles.prepare(which, run_dir, job.run.seed, "seq2seq" if sources else "policy")
    directory = str(model.path)
    tokenizer.save_pretrained(str(run_dir / "tokenizer"))
    most = job.rollout.max_new_tokens
    prompts = load_prompts(job.data, tokenizer, models.context_length(directory), most, "data", sources)
    check(prompts)
    demand = worker_demand(rollout=job.rollout, rewards=job.rewards)
    placement = Placement(plan_placement(job.cluster, demand, cluster_nodes()))
    longest = job.data.max_prompt_tokens + most
    reward = reward_group(job.rewards, run_dir, job.cluster, placement)
    rollout = rollout_group(job.rollout, model, roles.eos_ids(tokenizer, directory), longest, job.cluster, placement)
    try:
        reward.broadcast("check", longest)
        for line in decoding_remarks(rollout):
            notice(line)
        collector = Collector(rollout, reward, job.rollout.chunk_prompts, job.run.seed, job.cluster.deadline_s)
        order = Order(heldout.SEED_STEP, INITIAL, range(len(prompts)), 0, job.samples, greedy=greedy)
        batch = collector.collect(order, prompts)
    finally:
        for group in (rollout, reward):
            group.kill()
        placement.remove()
    members = {name for ensemble in job.rewards.ensembles for name in ensemble.members}  # all else counts as it scores
    own = {n: s for n, s in scales(batch.reward_parts, job.rewards).items() if n in members}
    return heldout.table(batch, job.rewards.terms, job.rewards, own, prompts.rows, tokenizer), prompts
