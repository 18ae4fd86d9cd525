"""Padding-free attention: B sequences end to end in one row, each attending to itself only.

Registered with transformers' AttentionInterface, so that any model built on it runs packed without a second
implementation. The sequence lengths travel as a keyword argument of the forward pass.
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "rlhf_ray_packed"
SHORT = 256  # tokens up to which a CPU's attention, backward pass included, is faster in float32 than in bfloat16


class UnsupportedModel(ValueError):
    """An architecture needs something that a fast path does not have; the message names both. The slow path is taken."""


def require_plain_attention(module: nn.Module, options: dict[str, Any], path: str) -> None:
    """Raises UnsupportedModel if a model gives its attention an option that is more than masked softmax."""
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]
    if unknown:
        raise UnsupportedModel(f"{type(module).__name__} uses {', '.join(unknown)}, which {path} does not have")


def require_plain_layers(model: Any, path: str) -> None:
    """Raises UnsupportedModel if a transformers ``model`` has layers other than full or sliding attention."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    others = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if others:
        raise UnsupportedModel(
            f"{type(model).__name__} has layers of kind {', '.join(others)}, for which {path} is wrong"
        )


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
    Half-precision sequences on a GPU go through one flash-attention kernel; elsewhere those of the same shape are computed
    together, short ones of bfloat16 in float32. Raises ValueError where the model does not pass
    ``sequence_lengths`` on, or uses an option of attention that is not here (soft-capping, position bias); the check at
    load then takes the padded path.
    """
    if sequence_lengths is None:
        raise UnsupportedModel(f"{type(module).__name__} does not pass keyword arguments on to its attention")
    require_plain_attention(module, kwargs, "packed attention")
    prefixes = sequence_prefixes or (-1,) * len(sequence_lengths)
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return flash(query, key, value, sequence_lengths, prefixes, scaling, sliding_window), None
    dtype = query.dtype
    if dtype == torch.bfloat16 and max(sequence_lengths) <= SHORT:
        query, key, value = query.float(), key.float(), value.float()
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
    return torch.cat([pieces[i] for i in range(len(sequence_lengths))]).unsqueeze(0).to(dtype), None


def flash(
    query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], prefixes: tuple[int, ...],
    scaling: float | None, window: int | None,
) -> Tensor:  # fmt: skip
    """One kernel for all sequences: queries are aligned with the end of their keys, which begin with a shared prompt's."""
    from torch.nn.attention.varlen import varlen_attn

    spans = key_spans(lengths, prefixes, query.device)
    fewer: dict[str, Any] = {}
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in inspect.signature(varlen_attn).parameters:
            fewer = {"enable_gqa": True}
        else:  # the oldest torch that is supported, 2.11, wants as many heads of keys as of queries
            key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if spans.at is not None:
        k, v = k[spans.at], v[spans.at]
    out = varlen_attn(
        q.contiguous(), k.contiguous(), v.contiguous(), spans.query_ends, spans.key_ends, max(lengths), spans.longest,
        scale=scaling, window_size=(-1 if window is None else window - 1, 0), **fewer,
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out.unsqueeze(0)


class Spans(NamedTuple):
    """Flat positions of each sequence's keys (None: they lie as they are), ends (B + 1,) int32 of queries and keys, most keys."""

    at: Tensor | None
    query_ends: Tensor
    key_ends: Tensor
    longest: int


@lru_cache(maxsize=4)
def key_spans(lengths: tuple[int, ...], prefixes: tuple[int, ...], device: torch.device) -> Spans:
    """Where the keys of each sequence are, its prefix's before its own; the same for all layers of a pass."""
    sizes = tuple(n + (0 if p < 0 else lengths[p]) for n, p in zip(lengths, prefixes, strict=True))
    queries, keys = (torch.tensor([0, *accumulate(n)], dtype=torch.int32, device=device) for n in (lengths, sizes))
    if sizes == lengths:
        return Spans(None, queries, keys, max(sizes))
    own = torch.arange(sum(lengths)).split(lengths)
    at = torch.cat([x for i, p in enumerate(prefixes) for x in ([own[i]] if p < 0 else [own[p], own[i]])])
    return Spans(at.to(device), queries, keys, max(sizes))


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
