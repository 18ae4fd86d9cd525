"""Noise on embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def embedding_noise(lengths: Tensor, width: int, alpha: float, seeds: Sequence[int]) -> Tensor:
    """NEFTune's noise (T, width) float32 for ragged sequences of ``lengths`` (B,), on their device: uniform in [-1, 1]
    times alpha / sqrt(L width), L the length of the token's own sequence, so that its expected norm is the same for
    all.

    Each sequence's numbers come from its own seed (B,) alone. Jain et al. 2023, arXiv 2310.05914, algorithm 1.
    """
    noises = []
    for length, seed in zip(lengths.tolist(), seeds, strict=True):
        draw = torch.Generator(lengths.device).manual_seed(int(seed))
        uniform = torch.rand(length, width, generator=draw, device=lengths.device) * 2 - 1
        noises.append(uniform * (alpha / (length * width) ** 0.5))
    return torch.cat(noises)
