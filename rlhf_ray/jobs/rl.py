"""Reinforcement learning, `job: ppo`: what it needs and how it is run."""

from __future__ import annotations

from ..config import ModelConfig, RLJob
from ..run.outcome import failing
from .kind import (
    Generation,
    JobKind,
    JobNeeds,
    Results,
    RLStep,
    RunContext,
    Training,
    engine_packages,
    learner_in_words,
    learner_packages,
    log_packages,
)


def needs(job: RLJob) -> JobNeeds:
    """All sections that an RL job has."""
    algorithm, rollout = job.algorithm, job.rollout
    generation = Generation(rollout=rollout, max_prompt_tokens=job.data.max_prompt_tokens)
    heldout = {} if job.evaluate.data is None else {"evaluate.data": job.evaluate.data.max_prompt_tokens}
    return JobNeeds(
        data={"data": job.data, "evaluate.data": job.evaluate.data, "ptx_data": job.ptx_data},
        token_limits={"prompt": job.data.max_prompt_tokens},
        prompt_limits={"data": job.data.max_prompt_tokens, **heldout},
        model=job.model,
        critic=_critic(job),
        model_paths=() if job.critic.path is None else (job.critic.path,),
        training=Training(
            learner=job.learner,
            num_steps=job.num_steps,
            sequences=rollout.prompts_per_step * algorithm.group_size // algorithm.num_mini_batches,
            max_tokens=generation.max_tokens,
            scored_share=rollout.max_new_tokens / generation.max_tokens,
            has_reference=job.needs_reference,
            offload_reference=job.reference.offload,
        ),
        generation=generation,
        rl_step=RLStep(
            group_size=algorithm.group_size,
            samples_per_prompt=algorithm.samples_per_prompt,
            epochs=algorithm.epochs,
            num_mini_batches=algorithm.num_mini_batches,
            columns_to_annotate=tuple(job.columns_to_annotate),
        ),
        rewards=job.all_rewards,
        packages={**log_packages(job.log), **learner_packages(job.learner), **engine_packages(rollout)},
    )


def _critic(job: RLJob) -> ModelConfig | None:
    """The trunk of PPO's critic: critic.path, or else the first reward model, or else the policy."""
    if not job.algorithm.has_critic:
        return None
    if job.critic.path is not None:
        return ModelConfig(path=job.critic.path)
    return job.model if job.reward_model is None else ModelConfig(path=job.reward_model.path)


def describe(job: RLJob) -> list[str]:
    """A step's batches, its optimizer steps, and its workers."""
    algorithm, rollout = job.algorithm, job.rollout
    samples = rollout.prompts_per_step * algorithm.group_size
    max_tokens = job.data.max_prompt_tokens + rollout.max_new_tokens
    ranks, micro_batches = learner_in_words(job.learner)
    return [
        f"{algorithm.type}: {job.num_steps} steps of {rollout.prompts_per_step} prompts > {samples} samples > "
        f"mini-batches of {samples // algorithm.num_mini_batches} > {micro_batches}",
        f"{algorithm.epochs} epoch(s) x {algorithm.num_mini_batches} mini-batch(es) = "
        f"{algorithm.epochs * algorithm.num_mini_batches} optimizer steps a step on {ranks}, "
        f"at most {samples * max_tokens} tokens",
        f"{rollout.num_workers} rollout worker(s) in chunks of {rollout.chunk_prompts} prompts, "
        f"{job.rewards.num_workers} reward worker(s), rollouts {rollout.ahead} step(s) ahead",
    ]


def run(job: RLJob, context: RunContext) -> Results:
    """Trains; returns each held-out measure before and after, with its interval."""
    from ..report.evaluations import compare_first_and_last, comparison_tables
    from ..train.rl import RL as Loop
    from ..train.setup import rl_setup

    with rl_setup(job, context.run.path) as setup:
        loop = Loop(job, context.run, setup, context.stop, context.watch)
        with failing(lambda: loop.step > 0):
            loop.train()
    comparison = compare_first_and_last(context.run.path)
    if comparison is None:
        return {}
    for table in comparison_tables(comparison, job.evaluate.num_shown):
        context.console.print(table)
    return {name: vars(difference) for name, difference in comparison.differences.items()}


RL = JobKind(needs=needs, describe=describe, run=run)
