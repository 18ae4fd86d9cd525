"""What jobs in which a model answers prompts have in common: evaluate and sample."""

from __future__ import annotations

from ..config import GenerationJob
from .kind import Generation, JobNeeds, engine_packages, log_packages


def generation_needs(
    job: GenerationJob, *, model_paths: tuple[str, ...] = (), packages: dict[str, str] | None = None
) -> JobNeeds:
    """A model, prompts and reward terms; and what a job needs besides."""
    return JobNeeds(
        data={"data": job.data},
        token_limits={"prompt": job.data.max_prompt_tokens},
        prompt_limits={"data": job.data.max_prompt_tokens},
        model=job.model,
        model_paths=model_paths,
        generation=Generation(rollout=job.rollout, max_prompt_tokens=job.data.max_prompt_tokens),
        rewards=job.rewards,
        packages={**log_packages(job.log), **engine_packages(job.rollout), **(packages or {})},
    )


def describe_generation(job: GenerationJob) -> list[str]:
    """The answers to each prompt, and the workers."""
    workers = f"{job.rollout.num_workers} rollout and {job.rewards.num_workers} reward worker(s)"
    return [f"{job.samples} answer(s) to each prompt by {workers}"]
