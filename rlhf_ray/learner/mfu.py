"""The FLOPs that an update needs, and the machine's peak that they are measured against."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import nn

from ..batch import Batch
from ..flops import TRAINING, causal_pairs, forward_flops
from .optimizers import full_shape

HEADS = "heads."  # of a ValueModel: its other parameters are the language model's


def training_flops(module: Any, kind: str, frozen_trunk: bool, batch: Batch) -> float:
    """Forward and backward FLOPs of a micro-batch's real tokens in a model of this ``kind``; embeddings are free.

    The language model's head counts for response tokens only, as it is computed for them only. A frozen trunk has no
    backward pass and no use for its head. A prompt that samples share is computed once.
    """
    if kind == "seq2seq":
        return _seq2seq_flops(module.core, batch)
    core, causal = module.core, kind in ("policy", "values")
    config = core.config
    head = config.vocab_size * config.hidden_size
    num_tables = 2 if causal and not config.tie_word_embeddings else 1
    body = num_elements(core) - num_tables * head
    lengths = batch.lengths.astype(float)
    shared = batch.shared_prompts.astype(float) if batch.has("prompt_length") else np.zeros(len(batch))
    read = float(batch.response_mask.sum()) if causal else 0.0
    products, pairs = body * float((lengths - shared).sum()), causal_pairs(float((lengths**2 - shared**2).sum()))
    attention_width = config.num_hidden_layers * config.hidden_size
    heads = sum(_size(p) for n, p in module.named_parameters() if n.startswith(HEADS) and p.requires_grad) * read
    if frozen_trunk:
        return forward_flops(products, attention_width, pairs) + TRAINING * forward_flops(heads, 0.0, 0.0)
    return TRAINING * forward_flops(products + head * read + heads, attention_width, pairs)


def _seq2seq_flops(core: Any, batch: Batch) -> float:
    """The encoder sees the sources in both directions, the decoder its past and the whole source."""
    config = core.config
    encoder, decoder = (
        sum(_size(p) for p in side.parameters() if config.vocab_size not in full_shape(p))
        for side in (core.get_encoder(), core.get_decoder())
    )
    head = config.vocab_size * config.hidden_size
    sources, targets = batch.prompt_length.astype(float), batch.response_lengths.astype(float)
    products = encoder * float(sources.sum()) + (decoder + head) * float(targets.sum())
    pairs = float((sources**2 + sources * targets).sum()) + causal_pairs(float((targets**2).sum()))
    return TRAINING * forward_flops(products, config.num_hidden_layers * config.hidden_size, pairs)


def num_elements(module: nn.Module) -> int:
    """Elements of all parameters, also of those that ZeRO-3 holds in shards."""
    return sum(_size(parameter) for parameter in module.parameters())


def _size(parameter: Any) -> int:
    return int(np.prod(full_shape(parameter)))


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product in ``dtype``, the best of three."""
    n = 1024 if device.type == "cpu" else 8192
    matrix = torch.randn(n, n, device=device, dtype=dtype)  # constants would need less power, and run faster
    best = float("inf")
    for _ in range(3):
        began = time.monotonic()
        (matrix @ matrix)[0, 0].item()
        best = min(best, time.monotonic() - began)
    return 2.0 * n**3 / best
