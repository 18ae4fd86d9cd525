"""How ragged sequences are packed into one row: end to end, with shared prompts stored once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Packing:
    """B sequences of T tokens in all, as S segments of N tokens in one row; N < T if prompts are shared.

    ``lengths`` and ``prefixes`` (S,): each segment's tokens, and the segment that it continues (-1: none).
    """

    lengths: tuple[int, ...]
    prefixes: tuple[int, ...]
    source: Tensor
    """(N,) flat position, among the T tokens, of each token of the row."""
    index: Tensor
    """(T,) index in the row of each of the T tokens; of a token that is left out, the index of its equal."""
    positions: Tensor
    """(N,) position of each token of the row in its sequence."""


def pack(lengths: Tensor, shared: Tensor | None) -> Packing:
    """The packing of sequences of ``lengths`` (B,) int64 that are stored end to end.

    ``shared`` (B,) int64: how many leading tokens a sequence has in common with the one before it (0: it starts a new
    group). These tokens are stored once, so G samples of a prompt of P tokens with responses of C tokens take P + G C
    tokens instead of G (P + C).

    Example: two samples ``a b c`` and ``a b d e`` of the prompt ``a b``, then another sequence ``f g``::

        lengths 3 4 2, shared 0 2 0    tokens  a b c a b d e f g
        segments a b | c | d e | f g   source  0 1 2 5 6 7 8
        prefixes  -1   0    0    -1    index   0 1 2 0 1 3 4 5 6    positions  0 1 2 2 3 0 1
    """
    device = lengths.device
    sequence = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
    starts = torch.cumsum(lengths, 0) - lengths
    positions = torch.arange(len(sequence), device=device) - starts[sequence]
    if shared is None or not shared.any():
        order = torch.arange(len(sequence), device=device)
        sizes, prefixes = tuple(lengths.tolist()), (-1,) * len(lengths)
        return Packing(lengths=sizes, prefixes=prefixes, source=order, index=order, positions=positions)
    numbers = torch.arange(len(lengths), device=device)
    leader = torch.where(shared == 0, numbers, 0).cummax(0).values  # the sequence that stores the shared tokens
    stored = positions >= shared[sequence]
    index = torch.cumsum(stored, 0) - 1
    index = torch.where(stored, index, index[starts[leader[sequence]] + positions])
    sizes, prefixes = _segments(lengths.tolist(), shared.tolist())
    source = stored.nonzero().squeeze(1)
    return Packing(lengths=sizes, prefixes=prefixes, source=source, index=index, positions=positions[stored])


def _segments(lengths: list[int], shared: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Lengths and prefixes (S,) of the segments: of each group its prompt, then what follows it in each sequence."""
    sizes: list[int] = []
    prefixes: list[int] = []
    prompt, prompt_length = -1, 0  # the group's prompt: its segment, and its length
    for length, common, next_common in zip(lengths, shared, [*shared[1:], 0], strict=True):
        if common == 0:
            prompt, prompt_length = (len(sizes), next_common) if next_common else (-1, 0)
            if next_common:
                sizes.append(prompt_length)
                prefixes.append(-1)
        sizes.append(length - (common or prompt_length))
        prefixes.append(prompt)
    return tuple(sizes), tuple(prefixes)
