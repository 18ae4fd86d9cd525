"""A job's batch arithmetic in words: what `rlhf-ray plan` prints before anything is started."""

from __future__ import annotations

from typing import Any

from ..config.answers import Answers, ScoreJob, TokenizerJob
from ..config.jobs import PipelineJob, RLJob


def lines(job: Any) -> list[str]:
    """Sentences about samples, optimizer steps and workers of each stage."""
    if isinstance(job, PipelineJob):
        return [f"{name}: {line}" for name, stage in job.stages.items() for line in lines(stage)]
    if isinstance(job, TokenizerJob):
        return [f"{job.job}: {job.algorithm} with {job.vocab_size} tokens"]
    if isinstance(job, ScoreJob):
        return [f"{job.job}: each text by {job.rewards.num_workers} reward worker(s)"]
    if isinstance(job, Answers):
        workers = f"{job.rollout.num_workers} rollout and {job.rewards.num_workers} reward worker(s)"
        return [f"{job.samples} answer(s) to each prompt by {workers}"]
    ranks = f"{job.learner.num_workers} learner rank(s) at ZeRO-{job.learner.zero_stage}"
    tokens = f"micro-batches of at most {job.learner.micro_batch_tokens} tokens"
    if not isinstance(job, RLJob):
        return [f"{job.job}: {job.num_steps} steps of {job.batch_size} examples on {ranks}, {tokens}"]
    a, r = job.algorithm, job.rollout
    samples = r.prompts_per_step * a.group_size
    longest = job.data.max_prompt_tokens + r.max_new_tokens
    return [
        f"{a.type}: {job.num_steps} steps of {r.prompts_per_step} prompts > {samples} samples > mini-batches of "
        f"{samples // a.num_mini_batches} > {tokens}",
        f"{a.epochs} epoch(s) x {a.num_mini_batches} mini-batch(es) = {a.epochs * a.num_mini_batches} optimizer steps a step on {ranks}, "
        f"at most {samples * longest} tokens",
        f"{r.num_workers} rollout worker(s) in chunks of {r.chunk_prompts} prompts, {job.rewards.num_workers} reward worker(s), "
        f"rollouts {r.ahead} step(s) ahead",
    ]
