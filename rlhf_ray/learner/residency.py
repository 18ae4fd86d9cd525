"""The parts of a learner's memory: which tensors are weights, optimizer states or the reference, asleep and awake."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..models.offload import HostOffload, release_cached_memory
from . import zero

PARTS = ("weights", "optimizer", "reference")


class Residency:
    """Puts parts of the learner's memory to sleep on the host, and wakes them.

    'weights' are those of trained roles, 'optimizer' is everything else that training them needs between two steps
    (master weights, moments, gradient buffers), and 'reference' is the frozen roles' weights. ``engines`` is what a
    worker holds, by role; ``averages`` are more tensors that belong to the optimizer.
    """

    def __init__(self, engines: Mapping[str, Any], device: torch.device, averages: Collection[Tensor] = ()) -> None:
        self.device = device
        trained = [engine for engine in engines.values() if is_trained(engine)]
        frozen = [engine for engine in engines.values() if not is_trained(engine)]
        self.parts = {
            "weights": HostOffload(lambda: [t for engine in trained for t in weight_tensors(engine)]),
            "optimizer": HostOffload(
                lambda: [*averages, *(t for engine in trained for t in optimizer_tensors(engine))],
                scratch=lambda: [t for engine in trained for t in scratch_tensors(engine)],
            ),
            "reference": HostOffload(lambda: [t for engine in frozen for t in weight_tensors(engine)]),
        }

    @property
    def awake(self) -> frozenset[str]:
        """The parts that hold device memory."""
        return frozenset(name for name, part in self.parts.items() if not part.is_asleep)

    def keep_awake(self, names: Collection[str]) -> dict[str, int]:
        """Puts all other parts to sleep and wakes these. Returns the bytes that each part gave (> 0) or took (< 0).

        Parts leave before others come, and the allocator's cache goes with them, so that the peak is the larger of two
        stages and not their sum.
        """
        leaving = [name for name in PARTS if name not in names]
        moved = {name: self.parts[name].sleep() for name in leaving}
        release_cached_memory(self.device)
        return moved | {name: -self.parts[name].wake() for name in PARTS if name in names}

    def require(self, *names: str) -> None:
        """Raises RuntimeError if a part sleeps: its tensors are empty, so a stage that did not wake it would crash."""
        asleep = sorted(set(names) - self.awake)
        if asleep:
            raise RuntimeError(
                f"the learner's {', '.join(asleep)} sleep on the host; the stage that asks must wake them"
            )


def is_trained(engine: Any) -> bool:
    """Whether any of the module's parameters learns."""
    return any(p.requires_grad for p in zero.module_of(engine).parameters())


def weight_tensors(engine: Any) -> Iterator[Tensor]:
    """Parameters and buffers of a module; at ZeRO-3 this rank's shards, and parameters that are gathered now."""
    module: nn.Module = zero.module_of(engine)
    for parameter in module.parameters():
        yield parameter.data
        if zero.is_partitioned(parameter):
            yield parameter.ds_tensor  # type: ignore[attr-defined]
            if getattr(parameter, "ds_secondary_tensor", None) is not None:  # the node's copy of learner.node_copies
                yield parameter.ds_secondary_tensor  # type: ignore[attr-defined]
    yield from module.buffers()


def optimizer_tensors(engine: Any) -> Iterator[Tensor]:
    """Every tensor that an engine's optimizer reaches, but for the module's own weights.

    DeepSpeed's optimizers keep master weights, moments and buffers in attributes whose names depend on the stage; all
    of them are found by a walk over containers and DeepSpeed's own objects.
    """
    weights = {t.untyped_storage()._cdata for t in weight_tensors(engine)}
    seen: set[int] = set()
    stack: list[Any] = [engine.optimizer, *(p.grad for p in zero.module_of(engine).parameters())]
    while stack:
        item = stack.pop()
        if id(item) in seen or isinstance(item, nn.Module | type):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            if item.device.type != "meta" and item.untyped_storage()._cdata not in weights:
                yield item.data
            if item.is_leaf and item.grad is not None:
                stack.append(item.grad)
        elif isinstance(item, Mapping):
            stack.extend(item.values())
        elif isinstance(item, torch.optim.Optimizer):  # DeepSpeed's optimizers are none, but hold one
            stack.extend([item.state, item.param_groups])
        elif isinstance(item, list | tuple | set | frozenset):
            stack.extend(item)
        elif _may_hold_tensors(item):
            stack.extend(vars(item).values())


def scratch_tensors(engine: Any) -> Iterator[Tensor]:
    """The buckets in which ZeRO-3 reduces gradients; between two steps they hold nothing (1 GB in bfloat16)."""
    for bucket in getattr(engine.optimizer, "ipg_buckets", {}).values():
        if isinstance(bucket.buffer, Tensor):
            yield bucket.buffer


def _may_hold_tensors(item: Any) -> bool:
    """Objects of DeepSpeed's runtime, not functions, groups of processes or modules."""
    return (type(item).__module__ or "").startswith("deepspeed.runtime") and hasattr(item, "__dict__")
