"""Padding-free attention: B sequences end to end in one row, each attending to itself only.

Registered with transformers' AttentionInterface, so that any model built on it runs packed without a second
implementation. The sequence lengths travel as a keyword argument of the forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "rlhf_ray_packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sequence_lengths: tuple[int, ...] | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each packed sequence.

    query (1, heads, T, d), key and value (1, kv_heads, T, d); returns (1, T, heads, d). Sequences of the same length are
    computed together. Raises ValueError where the model does not pass ``sequence_lengths`` on, or uses an option of
    attention that is not here (soft-capping, position bias); the check at load then takes the padded path.
    """
    if sequence_lengths is None:
        raise ValueError(f"{type(module).__name__} does not pass keyword arguments on to its attention")
    unknown = [k for k in ("softcap", "s_aux", "position_bias") if kwargs.get(k) is not None]
    if unknown:
        raise ValueError(f"{type(module).__name__} uses {', '.join(unknown)}, which packed attention does not have")
    parts = [x.split(sequence_lengths, 2) for x in (query, key, value)]  # one split: its backward is one cat
    members: dict[int, list[int]] = {}
    for index, length in enumerate(sequence_lengths):
        members.setdefault(length, []).append(index)
    pieces: dict[int, Tensor] = {}
    for length, same in members.items():
        q, k, v = (torch.cat([part[i] for i in same]) for part in parts)
        out = nn.functional.scaled_dot_product_attention(
            q, k, v, scale=scaling, enable_gqa=query.shape[1] != key.shape[1], **_mask(length, sliding_window, q.device)
        )
        pieces |= zip(same, out.transpose(1, 2).unbind(0), strict=True)
    return torch.cat([pieces[i] for i in range(len(sequence_lengths))]).unsqueeze(0), None


def _mask(length: int, window: int | None, device: torch.device) -> dict[str, Any]:
    if window is None or length <= window:
        return {"is_causal": True}
    at = torch.arange(length, device=device)
    distance = at[:, None] - at[None, :]
    return {"attn_mask": (distance >= 0) & (distance < window)}


AttentionInterface.register(NAME, packed_attention)
