"""The order examples come in: seeded epochs, addressed by position, so that the whole state is one integer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..config import BadInput

NUM_REMEMBERED_EPOCHS = 4


class Sampler:
    """Endless shuffled epochs over ``num_examples``. Position p means the same example in every call.

    ``part`` tells the epochs of a mixture's sources apart. ``chances`` (num_examples,) say, in any unit, how often an
    example is drawn. An epoch then draws num_examples times by systematic sampling: each example as often as its chance
    says, rounded up or down; once if all are equal.

        chances [1, 1, 2]: the examples cover [0, 1), [1, 2), [2, 4) of a line of length 4
        three points, 4/3 apart, from a random start 2/3:  2/3, 2, 10/3
        the examples they fall on, then shuffled:          0, 2, 2
    """

    def __init__(self, num_examples: int, seed: int, part: int = 0, chances: np.ndarray | None = None) -> None:
        if num_examples < 1:
            raise ValueError("a sampler needs at least one example")
        self.num_examples, self.seed, self.part, self.chances = num_examples, seed, part, chances
        self.epochs: dict[int, np.ndarray] = {}

    def indices(self, start: int, count: int) -> np.ndarray:
        """(count,) int64: the examples at positions start, start + 1, ..."""
        positions = np.arange(start, start + count)
        epochs, within = np.divmod(positions, self.num_examples)
        return np.array([self._epoch(int(e))[w] for e, w in zip(epochs, within, strict=True)], np.int64)

    def _epoch(self, number: int) -> np.ndarray:
        """(num_examples,): the order of an epoch; the last few are remembered."""
        if number not in self.epochs:
            if len(self.epochs) >= NUM_REMEMBERED_EPOCHS:
                self.epochs.pop(next(iter(self.epochs)))
            self.epochs[number] = self._draw_epoch(np.random.default_rng([self.seed, number, self.part]))
        return self.epochs[number]

    def _draw_epoch(self, draw: np.random.Generator) -> np.ndarray:
        order = draw.permutation(self.num_examples)
        if self.chances is None:
            return order
        edges = np.cumsum(self.chances[order])
        points = (np.arange(self.num_examples) + draw.random()) * (edges[-1] / self.num_examples)
        return draw.permutation(order[np.searchsorted(edges, points, side="right").clip(max=self.num_examples - 1)])


class Mixture:
    """Several sources, each in its own shuffled epochs; ``members`` are their examples, ``weights`` their shares.

    Positions come in shuffled blocks, and every source has its share of each block. After n positions a source has had
    its share of n to within one block. The example is a function of the position alone, as with :class:`Sampler`.

        weights 3 and 1: blocks of 8 positions, 6 of source 0 and 2 of source 1
        block 0 takes the positions 0 to 5 of source 0's sampler, and 0 to 1 of source 1's
        block 1 takes the positions 6 to 11 and 2 to 3; each block is shuffled by a seed of its own
    """

    def __init__(
        self, members: Sequence[np.ndarray], weights: Sequence[float], seed: int, chances: np.ndarray | None = None
    ) -> None:
        shares = np.array(weights, float) / sum(weights)
        self.members, self.seed = members, seed
        self.samplers = [
            Sampler(len(m), seed, part, None if chances is None else chances[m]) for part, m in enumerate(members, 1)
        ]
        self.num_examples = sum(len(m) for m in members)
        self.edges = np.concatenate([[0.0], np.cumsum(shares)[:-1], [1.0]])
        self.block = math.ceil(2 / shares.min())  # large enough that rounding leaves each source one example at least

    def indices(self, start: int, count: int) -> np.ndarray:
        """(count,) int64: the examples at positions start, start + 1, ..."""
        first, last = start // self.block, -(-(start + count) // self.block)
        blocks = [self._draw_block(number) for number in range(first, last)]
        offset = start - first * self.block
        return np.concatenate([*blocks, np.zeros(0, np.int64)])[offset : offset + count].astype(np.int64)

    def _draw_block(self, number: int) -> np.ndarray:
        """(block,): the examples of a block, in order."""
        begin, end = (np.diff(np.floor(self.edges * n * self.block + 0.5).astype(int)) for n in (number, number + 1))
        examples = [
            m[s.indices(int(b), int(e - b))] for m, s, b, e in zip(self.members, self.samplers, begin, end, strict=True)
        ]
        return np.random.default_rng([self.seed, number]).permutation(np.concatenate(examples))


@dataclass(frozen=True)
class Shares:
    """How often the rows of a dataset are drawn.

    ``ends`` are the rows at which its parts end, ``weights`` and ``names`` those of the parts; without them it is one
    part. ``chances`` (rows,) are those of the rows of a part against each other; None: all are equal.
    """

    ends: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    names: tuple[str, ...] = ()
    chances: np.ndarray | None = field(default=None, compare=False)

    def sampler(self, rows: np.ndarray, seed: int) -> Sampler | Mixture:
        """The sampler of examples that were made of ``rows`` (n,). Raises BadInput if a part has none."""
        chances = None if self.chances is None else self.chances[rows]
        if not self.ends:
            return Sampler(len(rows), seed, chances=chances)
        part = np.searchsorted(self.ends, rows, side="right")
        members = [np.flatnonzero(part == p) for p in range(len(self.ends))]
        for name, member in zip(self.names, members, strict=True):
            if not len(member):
                raise BadInput(f"{name}: no example of this part of the mixture is left, so it cannot have its share")
        return Mixture(members, self.weights, seed, chances)


EQUAL = Shares()
"""One part whose rows are drawn equally often."""


def balanced(classes: np.ndarray, seed: int) -> Mixture:
    """A sampler of examples with these ``classes`` (n,) that has all classes equally often, rare examples repeated."""
    members = [np.flatnonzero(classes == c) for c in np.unique(classes)]
    return Mixture(members, [1.0] * len(members), seed)
