"""Weights of a role leave the learner: gathered on rank 0, with adapters merged, and exported to disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch

from ..models.checkpoint_format import in_checkpoint_format, saved_buffers
from ..models.value_heads import save_heads
from . import zero
from .mfu import HEADS

Tensors = Iterator[tuple[str, torch.Tensor]]


def gather_parameters(module: Any, is_rank_0: bool, count_progress: Callable[[], None]) -> Tensors:
    """Name in memory and host tensor of each parameter on rank 0, one at a time, with adapters merged.

    All ranks must call. ``module`` is a wrapper of models/load.py.
    """
    adapted = {name: layer for name, layer in module.named_modules() if hasattr(layer, "get_delta_weight")}
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            continue
        count_progress()
        layer = adapted.get(name.removesuffix(".weight").removesuffix(".base_layer"))
        with zero.gathered([parameter] if layer is None else list(layer.parameters())):
            if not is_rank_0:
                continue
            tensor = parameter.detach()
            if layer is not None and name.endswith("base_layer.weight"):
                tensor = tensor + layer.get_delta_weight("default").to(tensor.dtype)
            tensor = tensor.to("cpu", copy=zero.is_partitioned(parameter))
        yield _name_in_core(module, name), tensor


def _name_in_core(module: Any, name: str) -> str:
    """A parameter's name in transformers' model, from that in the wrapper, with or without adapters."""
    prefix = "model.base_model.model." if hasattr(module.model, "peft_config") else "model."
    return name.removeprefix(prefix).replace(".base_layer.", ".")


def gather_checkpoint(module: Any, is_rank_0: bool, count_progress: Callable[[], None]) -> Tensors:
    """Name and host tensor on rank 0 of all that ``save_pretrained`` would write. All ranks must call."""
    names = [_name_in_core(module, name) for name, _ in module.named_parameters() if "lora_" not in name]
    parameters = gather_parameters(module, is_rank_0, count_progress)
    buffers = _host_buffers(module.core) if is_rank_0 else {}
    return in_checkpoint_format(module.core, [*names, *buffers], chain(parameters, buffers.items()))


def _host_buffers(core: Any) -> dict[str, torch.Tensor]:
    return {name: buffer.cpu() for name, buffer in saved_buffers(core).items()}


def export_model(module: Any, tensors: dict[str, torch.Tensor], directory: str) -> None:
    """Writes a model in Hugging Face format (safetensors); value heads go into a folder of it.

    ``tensors`` are all of :func:`gather_parameters`.
    """
    heads = {name.removeprefix(HEADS): tensors[name] for name in tensors if name.startswith(HEADS)}
    core = module.core
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(HEADS)}
    core.save_pretrained(directory, state_dict=weights | _host_buffers(core))
    if heads:
        save_heads(heads, directory)
