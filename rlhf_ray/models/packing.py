"""How ragged sequences lie in one packed row: end to end, and a prompt that neighbours share only once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """S segments of N tokens in all. A segment goes on from the one its entry in ``prefixes`` names, or from none (-1)."""

    lengths: tuple[int, ...]
    prefixes: tuple[int, ...]
    kept: Tensor
    """(N,) which of the T tokens are there."""
    place: Tensor
    """(T,) where each token stands among them; those left out, where their equal stands."""
    positions: Tensor
    """(N,) position of each token in its sequence."""


def pack(lengths: Tensor, shared: Tensor | None = None) -> Packing:
    """The packing of B sequences of ``lengths`` (B,).

    ``shared`` (B,) says how many leading tokens a sequence has in common with the one before it (0: it starts anew). They
    are left out, and the sequence goes on from the first of its neighbours, so that G samples of a prompt of P tokens and
    responses of C tokens cost P + G C tokens instead of G (P + C).
    """
    device = lengths.device
    row = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
    starts = torch.cumsum(lengths, 0) - lengths
    positions = torch.arange(len(row), device=device) - starts[row]
    if shared is None or not shared.any():
        everything = torch.arange(len(row), device=device)
        return Packing(tuple(lengths.tolist()), (-1,) * len(lengths), everything, everything, positions)
    numbers = torch.arange(len(lengths), device=device)
    leader = torch.where(shared == 0, numbers, 0).cummax(0).values
    there = positions >= shared[row]
    place = torch.cumsum(there, 0) - 1
    place = torch.where(there, place, place[starts[leader[row]] + positions])
    sizes: list[int] = []
    prefixes: list[int] = []
    prompt = -1
    following = [*shared.tolist()[1:], 0]
    for length, common, after in zip(lengths.tolist(), shared.tolist(), following, strict=True):
        if common == 0 and after > 0:
            prompt = len(sizes)
            sizes.append(after)
            prefixes.append(-1)
        first = common == 0 and after == 0
        sizes.append(length if first else length - max(common, after if common == 0 else 0))
        prefixes.append(-1 if first else prompt)
    return Packing(tuple(sizes), tuple(prefixes), there.nonzero().squeeze(1), place, positions[there])
