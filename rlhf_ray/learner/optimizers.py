"""The optimizers of `learner.optimizer`, built around a model for DeepSpeed."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import nn

from ..config import BadInput, LearnerConfig

MUON_MOMENTUM = 0.95
ADAM_RMS = 0.2  # root mean square of an AdamW update over its learning rate, in practice


def make_optimizer(model: nn.Module, config: LearnerConfig, lr: float) -> Any:
    """AdamW, in float32 or 8 bits, or SGD, of what is trainable in ``model``; biases and norms have no weight decay.

    Raises BadInput for adamw_8bit on a CPU.
    """
    matrices, vectors = _trainable(model)
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr)
    on_gpu = all(p.device.type == "cuda" for p in [*matrices, *vectors])
    if config.optimizer == "adamw_8bit":
        if not on_gpu:
            raise BadInput("learner.optimizer: adamw_8bit runs on GPUs only; take adamw")
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, lr=lr, betas=config.betas)
    return torch.optim.AdamW(groups, lr=lr, betas=config.betas, fused=True if on_gpu else None)


def muon_groups(model: nn.Module, config: LearnerConfig, lr: float) -> list[dict[str, Any]]:
    """Parameter groups for DeepSpeed's Muon, of what is trainable in ``model``.

    Muon (https://kellerjordan.github.io/posts/muon) updates the matrices of hidden layers, and AdamW the rest:
    embeddings, the head and vectors. DeepSpeed's Muon gives an update of (rows, columns) the root mean square
    1 / sqrt(columns). So the rate is scaled by 0.2 sqrt(columns): then updates are as large as AdamW's, and one ``lr``
    holds for both (Liu et al. 2025, arXiv 2502.16982).
    """
    matrices, vectors = _trainable(model)
    hidden = {id(p) for p in _hidden_matrices(model)}
    for parameter in [*matrices, *vectors]:
        parameter.use_muon = id(parameter) in hidden  # DeepSpeed reads it
    by_columns: dict[int, list[Any]] = defaultdict(list)
    for parameter in matrices:
        if parameter.use_muon:
            by_columns[full_shape(parameter)[1]].append(parameter)
    muon = {"momentum": MUON_MOMENTUM, "weight_decay": config.weight_decay, "use_muon": True}
    adam = {"lr": lr, "betas": config.betas, "eps": 1e-8, "use_muon": False}
    groups = [
        *({"params": ps, "lr": lr * ADAM_RMS * columns**0.5, **muon} for columns, ps in sorted(by_columns.items())),
        {"params": [p for p in matrices if not p.use_muon], "weight_decay": config.weight_decay, **adam},
        {"params": vectors, "weight_decay": 0.0, **adam},
    ]
    return [g for g in groups if g["params"]]


def _trainable(model: nn.Module) -> tuple[list[Any], list[Any]]:
    """Trainable parameters with two dimensions or more, and those with one."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [p for p in trainable if len(full_shape(p)) > 1], [p for p in trainable if len(full_shape(p)) <= 1]


def _hidden_matrices(model: nn.Module) -> list[Any]:
    """Trainable weights of linear layers with two dimensions, without the language model's head."""
    core: Any = getattr(model, "core", model)
    outputs = core.get_output_embeddings() if hasattr(core, "get_output_embeddings") else None
    head = None if outputs is None else outputs.weight
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    return [w for w in weights if w is not head and w.requires_grad and min(full_shape(w)) > 1]


def full_shape(parameter: Any) -> tuple[int, ...]:
    """Shape of a parameter; of one that ZeRO-3 holds in shards, that of the whole."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
