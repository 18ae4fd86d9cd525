"""Options that would make a job fit on a cluster, or shorten its steps."""

from __future__ import annotations

from collections.abc import Callable

from ..config import BadInput, LearnerConfig, RolloutConfig, SingleJob, apply_overrides, parse
from ..jobs.kinds import kind_of
from .forecast import Forecast, forecast
from .requirements import Setting

Suggestion = Callable[[SingleJob], str | None]
"""The override (`key.path=value`) that a job could try; None if it does not apply to the job."""

WORTHWHILE = 0.95  # a suggestion is named if it shortens the step to less than this share


def overrides_that_fit(current: Forecast) -> list[str]:
    """The fewest overrides that make a job fit: one alone if one is enough, else several of TO_FIT in their order.

    Empty if all of TO_FIT together are not enough.
    """
    for suggest in TO_FIT:
        override, job = _try(suggest, current.job)
        if override and _fits(job, current.setting):
            return [override]
    overrides: list[str] = []
    job = current.job
    for suggest in TO_FIT:
        override, job = _try(suggest, job)
        if override:
            overrides.append(override)
            if _fits(job, current.setting):
                return _without_needless(overrides, current)
    return []


def overrides_that_shorten(current: Forecast) -> list[tuple[str, float]]:
    """Overrides with which the job still fits and a step is shorter, and the seconds of that step; the best first."""
    shorter = []
    for suggest in TO_SHORTEN:
        override, job = _try(suggest, current.job)
        changed = _forecast(job, current.setting) if override else None
        if changed and changed.fits and changed.seconds["step"] < WORTHWHILE * current.seconds["step"]:
            shorter.append((str(override), changed.seconds["step"]))
    return sorted(shorter, key=lambda pair: pair[1])


def _try(suggest: Suggestion, job: SingleJob) -> tuple[str | None, SingleJob]:
    """The override for a job and the job with it; (None, the job) if it does not apply or changes nothing."""
    override = suggest(job)
    changed = None if override is None else _with_overrides(job, [override])
    return (None, job) if changed is None else (override, changed)


def _with_overrides(job: SingleJob, overrides: list[str]) -> SingleJob | None:
    """The job with options set; None if that is no valid job, or the same one."""
    try:
        changed: SingleJob = parse(apply_overrides(job.model_dump(mode="json"), overrides), "job")
    except BadInput:
        return None
    return None if job == changed else changed


def _without_needless(overrides: list[str], current: Forecast) -> list[str]:
    """The overrides but for those that the job fits without. The first are tried first."""
    needed = overrides
    for override in overrides:
        fewer = [o for o in needed if o != override]
        job = _with_overrides(current.job, fewer)
        if job is not None and _fits(job, current.setting):
            needed = fewer
    return needed


def _fits(job: SingleJob, setting: Setting) -> bool:
    changed = _forecast(job, setting)
    return changed is not None and changed.fits


def _forecast(job: SingleJob, setting: Setting) -> Forecast | None:
    """The forecast of a job; None if it cannot be placed."""
    try:
        return forecast(job, setting)
    except BadInput:
        return None


def _learner(job: SingleJob) -> LearnerConfig | None:
    training = kind_of(job).needs(job).training
    return None if training is None else training.learner


def _rollout(job: SingleJob) -> RolloutConfig | None:
    generation = kind_of(job).needs(job).generation
    return None if generation is None else generation.rollout


# What makes a job fit -------------------------------------------------------------------------------------------------


def recompute_activations(job: SingleJob) -> str | None:
    """Activations are computed again in the backward pass instead of kept."""
    return "model.gradient_checkpointing=true" if _learner(job) else None


def shard_gradients(job: SingleJob) -> str | None:
    """ZeRO-2: gradients are divided among the ranks."""
    learner = _learner(job)
    return "learner.zero_stage=2" if learner and learner.zero_stage < 2 else None


def offload_optimizer(job: SingleJob) -> str | None:
    """The optimizer's states sleep on the host while the engines generate."""
    learner = _learner(job)
    return "learner.offload=optimizer" if learner and _rollout(job) and learner.offload == "none" else None


def offload_learner(job: SingleJob) -> str | None:
    """All of the learner sleeps on the host while the engines generate."""
    learner = _learner(job)
    return "learner.offload=all" if learner and _rollout(job) and learner.offload != "all" else None


def shard_weights(job: SingleJob) -> str | None:
    """ZeRO-3: weights are divided among the ranks too."""
    return "learner.zero_stage=3" if _learner(job) else None


def smallest_micro_batches(job: SingleJob) -> str | None:
    """Micro-batches of one longest sequence."""
    training = kind_of(job).needs(job).training
    return None if training is None else f"learner.micro_batch_tokens={training.max_tokens}"


def bfloat16_engine(job: SingleJob) -> str | None:
    """The engine's weights and KV cache in half the bytes."""
    return "rollout.engine.dtype=bfloat16" if _rollout(job) else None


def smaller_reservation(job: SingleJob) -> str | None:
    """An engine that reserves GPU memory when it starts reserves less."""
    rollout = _rollout(job)
    reservation = rollout and rollout.engine.memory_reservation
    return "rollout.engine.memory_fraction=0.3" if reservation and reservation.gpu_fraction > 0.3 else None


def fewer_rows(job: SingleJob) -> str | None:
    """A KV cache for fewer sequences."""
    rollout = _rollout(job)
    return "rollout.engine.max_rows=16" if rollout and rollout.engine.max_rows > 16 else None


def bfloat16_model(job: SingleJob) -> str | None:
    """The learner's weights, gradients and activations in half the bytes."""
    return "model.dtype=bfloat16" if _learner(job) else None


def separate_devices(job: SingleJob) -> str | None:
    """Learner and rollout workers on devices of their own."""
    return "cluster.colocate=false" if _rollout(job) else None


TO_FIT: tuple[Suggestion, ...] = (
    recompute_activations,
    shard_gradients,
    offload_optimizer,
    offload_learner,
    shard_weights,
    smallest_micro_batches,
    bfloat16_engine,
    smaller_reservation,
    fewer_rows,
    bfloat16_model,
    separate_devices,
)


# What makes a step shorter --------------------------------------------------------------------------------------------


def generate_ahead(job: SingleJob) -> str | None:
    """The next step's rollouts are generated while the learner trains on this step's."""
    rollout = _rollout(job)
    return "rollout.ahead=1" if rollout and rollout.ahead == 0 else None


def vllm_engine(job: SingleJob) -> str | None:
    """vLLM instead of the embedded engine."""
    rollout = _rollout(job)
    return "rollout.engine={type: vllm}" if rollout and rollout.engine.type != "vllm" else None


def more_rollout_workers(job: SingleJob) -> str | None:
    """Twice as many rollout workers."""
    rollout = _rollout(job)
    return f"rollout.num_workers={2 * rollout.num_workers}" if rollout else None


def more_learner_ranks(job: SingleJob) -> str | None:
    """Twice as many learner ranks."""
    learner = _learner(job)
    return f"learner.num_workers={2 * learner.num_workers}" if learner else None


def more_rows(job: SingleJob) -> str | None:
    """Twice as many sequences in a decode step."""
    rollout = _rollout(job)
    return f"rollout.engine.max_rows={2 * rollout.engine.max_rows}" if rollout else None


def one_chunk_per_worker(job: SingleJob) -> str | None:
    """All prompts of a rollout worker at once: it decodes fewer half-empty batches."""
    rollout = _rollout(job)
    return f"rollout.chunk_prompts={-(-rollout.prompts_per_step // rollout.num_workers)}" if rollout else None


def keep_activations(job: SingleJob) -> str | None:
    """Activations are kept instead of computed again in the backward pass."""
    return "model.gradient_checkpointing=false" if _learner(job) else None


def larger_micro_batches(job: SingleJob) -> str | None:
    """Micro-batches of twice as many tokens."""
    learner = _learner(job)
    return f"learner.micro_batch_tokens={2 * learner.micro_batch_tokens}" if learner else None


TO_SHORTEN: tuple[Suggestion, ...] = (
    generate_ahead,
    vllm_engine,
    more_rollout_workers,
    more_learner_ranks,
    more_rows,
    one_chunk_per_worker,
    keep_activations,
    larger_micro_batches,
)
