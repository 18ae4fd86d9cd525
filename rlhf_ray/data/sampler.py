"""The order examples come in: seeded epochs, addressed by position, so that the whole state is one integer."""

from __future__ import annotations

import numpy as np

KEPT = 4  # epochs whose order is remembered


class Sampler:
    """Endless shuffled epochs over ``num_examples``. Position p means the same example whoever asks and whenever.

    With ``classes`` (num_examples,) an epoch has every class equally often (but for a remainder), rare examples repeated.
    """

    def __init__(self, num_examples: int, seed: int, classes: np.ndarray | None = None) -> None:
        if num_examples < 1:
            raise ValueError("a sampler needs at least one example")
        self.num_examples, self.seed = num_examples, seed
        self.members = None if classes is None else [np.flatnonzero(classes == c) for c in np.unique(classes)]
        self.epochs: dict[int, np.ndarray] = {}

    def indices(self, start: int, count: int) -> np.ndarray:
        """(count,) int64: the examples at positions start, start + 1, ..."""
        positions = np.arange(start, start + count)
        epochs, within = np.divmod(positions, self.num_examples)
        return np.array([self._epoch(int(e))[w] for e, w in zip(epochs, within, strict=True)], np.int64)

    def _epoch(self, number: int) -> np.ndarray:
        """An epoch's order; the last few are kept."""
        if number not in self.epochs:
            if len(self.epochs) >= KEPT:
                self.epochs.pop(next(iter(self.epochs)))
            self.epochs[number] = self._drawn(np.random.default_rng([self.seed, number]))
        return self.epochs[number]

    def _drawn(self, draw: np.random.Generator) -> np.ndarray:
        if self.members is None:
            return draw.permutation(self.num_examples)
        each = -(-self.num_examples // len(self.members))
        picked = [np.concatenate([draw.permutation(m) for _ in range(-(-each // len(m)))])[:each] for m in self.members]
        return draw.permutation(np.stack(picked, 1).reshape(-1)[: self.num_examples])
