"""Exhausted memory in one sentence: the rank, its micro-batch, and the settings that need less."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from ..batch import Batch
from ..config import BadInput, LearnerConfig, ModelConfig

P = ParamSpec("P")
R = TypeVar("R")
TEXT = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|CUBLAS_STATUS_ALLOC_FAILED|cudaErrorMemoryAllocation",
    re.IGNORECASE,
)
LONGEST_CAUSE = 200  # characters of the allocator's message that are shown


class OutOfMemory(BadInput):
    """A learner rank ran out of memory: of its GPU, or of its host."""


def explains_memory(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """A method of a LearnerWorker that raises OutOfMemory in place of the allocator's error.

    It reads the worker's ``rank``, ``world_size``, ``config``, ``roles``, and ``micro_batch``, the one that is
    computed.
    """

    @functools.wraps(method)
    def explained(worker: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(worker, *args, **kwargs)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise explain_out_of_memory(
                error,
                rank=worker.rank,
                world_size=worker.world_size,
                stage=method.__name__,
                batch=worker.micro_batch,
                config=worker.config,
                models=[role.model for role in worker.roles.values() if role.lr is not None],
            ) from error

    return explained


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU's or the host's memory is exhausted. torch raises RuntimeErrors for some."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and TEXT.search(str(error)) is not None)


def explain_out_of_memory(
    error: BaseException,
    *,
    rank: int,
    world_size: int,
    stage: str,
    batch: Batch | None,
    config: LearnerConfig,
    models: Sequence[ModelConfig],
) -> OutOfMemory:
    """The sentence of an error. ``batch`` is the micro-batch that did not fit; None if the error came outside of one.

    ``models`` are those that are trained. Only settings that would lower the memory of this job are named.
    """
    place = f"learner rank {rank} ran out of memory in {stage}"
    settings = smaller_settings(world_size, config, models)
    if batch is not None:
        place += f", at a micro-batch of {len(batch):,} rows and {len(batch.tokens):,} tokens"
        if len(batch) > 1:
            settings.insert(0, f"a lower learner.micro_batch_tokens ({config.micro_batch_tokens})")
        else:
            settings.append("shorter sequences")
    cause = " ".join(str(error).split())[:LONGEST_CAUSE] or type(error).__name__
    return OutOfMemory(f"{place} ({cause}); what needs less: {', '.join(settings)}; `rlhf-ray plan` shows by how much")


def smaller_settings(world_size: int, config: LearnerConfig, models: Sequence[ModelConfig]) -> list[str]:
    """Settings that this job does not have yet and that lower a rank's memory."""
    settings = []
    if not all(model.gradient_checkpointing for model in models):
        settings.append("model.gradient_checkpointing=true")
    if world_size > 1 and config.zero_stage < 3:
        settings.append("learner.zero_stage=3")
    else:
        settings.append("more learner.num_workers with learner.zero_stage=3")
    if any(model.dtype == "float32" for model in models):
        settings.append("model.dtype=bfloat16")
    if all(model.lora is None for model in models):
        settings.append("model.lora={}")
    return settings
