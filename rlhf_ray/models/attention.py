"""Padding-free attention: B sequences end to end in one row, each attending to itself only.

It is registered with transformers' AttentionInterface, so any model that uses this interface can run packed. The
sequence lengths are a keyword argument of the model's forward pass.
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
FLOAT32_LENGTH = 256  # tokens; up to it, CPU attention (with its backward pass) is faster in float32 than in bfloat16


class UnsupportedModel(ValueError):
    """An architecture needs something that a fast path lacks; the message names both.

    The caller takes the slow path.
    """


def require_plain_attention(module: nn.Module, options: dict[str, Any], path: str) -> None:
    """Raises UnsupportedModel if ``options`` of an attention layer ask for more than masked softmax.

    ``path`` names the fast path in the message.
    """
    names = [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]
    if names:
        raise UnsupportedModel(f"{type(module).__name__} uses {', '.join(names)}, which {path} does not have")


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
    """Causal attention inside each packed sequence; the interface of transformers' attention functions.

    ``query`` (1, heads, T, d), ``key`` and ``value`` (1, kv_heads, T, d); returns (1, T, heads, d).
    ``sequence_lengths`` (S,) sum to T. ``sequence_prefixes`` (S,): the index of the sequence that a sequence continues,
    -1 if there is none. So a prompt is stored once for all its samples (see packing.py). On a GPU, half-precision
    sequences go through one flash-attention kernel. Elsewhere sequences of the same shape are computed together, and
    short bfloat16 ones in float32. Raises UnsupportedModel if the model does not pass ``sequence_lengths`` on, or if it
    uses an option that is not implemented here (soft-capping, position bias).
    """
    if sequence_lengths is None:
        raise UnsupportedModel(f"{type(module).__name__} does not pass keyword arguments on to its attention")
    require_plain_attention(module, kwargs, "packed attention")
    prefixes = sequence_prefixes or (-1,) * len(sequence_lengths)
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return flash_attention(query, key, value, sequence_lengths, prefixes, scaling, sliding_window), None
    dtype = query.dtype
    if dtype == torch.bfloat16 and max(sequence_lengths) <= FLOAT32_LENGTH:
        query, key, value = query.float(), key.float(), value.float()
    queries, keys, values = (x.split(sequence_lengths, 2) for x in (query, key, value))  # its backward is one cat
    sequences_by_shape: dict[tuple[int, int], list[int]] = {}
    for index, (length, prefix) in enumerate(zip(sequence_lengths, prefixes, strict=True)):
        prefix_length = 0 if prefix < 0 else sequence_lengths[prefix]
        sequences_by_shape.setdefault((length, prefix_length), []).append(index)
    outputs: dict[int, Tensor] = {}
    for (length, prefix_length), indices in sequences_by_shape.items():
        out = nn.functional.scaled_dot_product_attention(
            torch.cat([queries[i] for i in indices]),
            torch.cat([_with_prefix(keys, i, prefixes[i]) for i in indices]),
            torch.cat([_with_prefix(values, i, prefixes[i]) for i in indices]),
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
            **_mask(length, prefix_length, sliding_window, query.device),
        )
        outputs |= zip(indices, out.transpose(1, 2).unbind(0), strict=True)
    return torch.cat([outputs[i] for i in range(len(sequence_lengths))]).unsqueeze(0).to(dtype), None


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: tuple[int, ...],
    prefixes: tuple[int, ...],
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """:func:`packed_attention` by one kernel for all sequences; needs a GPU and half precision.

    The kernel aligns the queries of a sequence with the end of its keys, which begin with those of its prefix.
    """
    from torch.nn.attention.varlen import varlen_attn

    layout = key_layout(lengths, prefixes, query.device)
    gqa: dict[str, Any] = {}
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in inspect.signature(varlen_attn).parameters:
            gqa = {"enable_gqa": True}
        else:  # torch 2.11, the oldest that is supported, needs as many heads of keys as of queries
            key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if layout.positions is not None:
        k, v = k[layout.positions], v[layout.positions]
    out = varlen_attn(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        layout.query_ends,
        layout.key_ends,
        max(lengths),
        layout.max_keys,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        **gqa,
    )
    assert isinstance(out, Tensor)
    return out.unsqueeze(0)


class KeyLayout(NamedTuple):
    """Where the keys of S packed sequences are, for the flash-attention kernel.

    ``positions``: flat positions of the keys, sequence by sequence; None if they are in order already. ``query_ends``
    and ``key_ends`` (S + 1,) int32: cumulative numbers of queries and keys, from 0. ``max_keys``: the most of one
    sequence.
    """

    positions: Tensor | None
    query_ends: Tensor
    key_ends: Tensor
    max_keys: int


@lru_cache(maxsize=4)
def key_layout(lengths: tuple[int, ...], prefixes: tuple[int, ...], device: torch.device) -> KeyLayout:
    """The layout in which a prefix's keys come before a sequence's. All layers of a pass use the same one.

    Example: ``lengths`` (3, 2, 2) and ``prefixes`` (-1, 0, 0), a prompt of 3 tokens with two responses of 2::

        positions    0 1 2 | 0 1 2 3 4 | 0 1 2 5 6
        query_ends   0 3 5 7
        key_ends     0 3 8 13
    """
    num_keys = tuple(n + (0 if p < 0 else lengths[p]) for n, p in zip(lengths, prefixes, strict=True))
    query_ends, key_ends = (
        torch.tensor([0, *accumulate(counts)], dtype=torch.int32, device=device) for counts in (lengths, num_keys)
    )
    if num_keys == lengths:
        return KeyLayout(None, query_ends, key_ends, max(num_keys))
    ranges = torch.arange(sum(lengths)).split(lengths)
    parts = [ranges[j] for i, prefix in enumerate(prefixes) for j in ((i,) if prefix < 0 else (prefix, i))]
    return KeyLayout(torch.cat(parts).to(device), query_ends, key_ends, max(num_keys))


def _with_prefix(parts: tuple[Tensor, ...], index: int, prefix: int) -> Tensor:
    """Keys or values of sequence ``index``, those of its ``prefix`` (an index, or -1) before them."""
    return parts[index] if prefix < 0 else torch.cat([parts[prefix], parts[index]], 2)


def _mask(length: int, prefix_length: int, window: int | None, device: torch.device) -> dict[str, Any]:
    """Arguments that let ``length`` queries after a prefix see themselves and earlier tokens, within a ``window``."""
    if prefix_length == 0 and (window is None or length <= window):
        return {"is_causal": True}
    num_keys = prefix_length + length
    distance = torch.arange(prefix_length, num_keys, device=device)[:, None] - torch.arange(num_keys, device=device)
    return {"attn_mask": (distance >= 0) & (distance < (window or num_keys))}


AttentionInterface.register(NAME, packed_attention)
