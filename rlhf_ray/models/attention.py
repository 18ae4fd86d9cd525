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
    sequence_prefixes: tuple[int, ...] | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each packed sequence.

    query (1, heads, T, d), key and value (1, kv_heads, T, d); returns (1, T, heads, d). A sequence may go on from another,
    which ``sequence_prefixes`` names by its index (-1: from none): a prompt that stands there once for all its samples.
    Sequences of the same shape are computed together. Raises ValueError where the model does not pass
    ``sequence_lengths`` on, or uses an option of attention that is not here (soft-capping, position bias); the check at
    load then takes the padded path.
    """
    if sequence_lengths is None:
        raise ValueError(f"{type(module).__name__} does not pass keyword arguments on to its attention")
    unknown = [k for k in ("softcap", "s_aux", "position_bias") if kwargs.get(k) is not None]
    if unknown:
        raise ValueError(f"{type(module).__name__} uses {', '.join(unknown)}, which packed attention does not have")
    prefixes = sequence_prefixes or (-1,) * len(sequence_lengths)
    queries, keys, values = (x.split(sequence_lengths, 2) for x in (query, key, value))  # its backward is one cat
    shapes: dict[tuple[int, int], list[int]] = {}
    for index, (length, prefix) in enumerate(zip(sequence_lengths, prefixes, strict=True)):
        shapes.setdefault((length, 0 if prefix < 0 else sequence_lengths[prefix]), []).append(index)
    pieces: dict[int, Tensor] = {}
    for (length, before), same in shapes.items():
        k, v = (torch.cat([_whole(x, i, prefixes[i]) for i in same]) for x in (keys, values))
        out = nn.functional.scaled_dot_product_attention(
            torch.cat([queries[i] for i in same]), k, v, scale=scaling, enable_gqa=query.shape[1] != key.shape[1],
            **_mask(length, before, sliding_window, query.device),
        )  # fmt: skip
        pieces |= zip(same, out.transpose(1, 2).unbind(0), strict=True)
    return torch.cat([pieces[i] for i in range(len(sequence_lengths))]).unsqueeze(0), None


def _whole(parts: tuple[Tensor, ...], index: int, prefix: int) -> Tensor:
    return parts[index] if prefix < 0 else torch.cat([parts[prefix], parts[index]], 2)


def _mask(length: int, before: int, window: int | None, device: torch.device) -> dict[str, Any]:
    """What lets ``length`` queries, which stand behind ``before`` keys, see themselves and the past (of a window)."""
    if before == 0 and (window is None or length <= window):
        return {"is_causal": True}
    distance = torch.arange(before, before + length, device=device)[:, None] - torch.arange(
        before + length, device=device
    )
    return {"attn_mask": (distance >= 0) & (distance < (window or before + length))}


AttentionInterface.register(NAME, packed_attention)
