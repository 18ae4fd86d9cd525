"""The order examples come in: seeded epochs, addressed by position, so that the whole state is one integer."""

from __future__ import annotations

import functools

import numpy as np


class Sampler:
    """Endless shuffled epochs over ``num_examples``. Position p means the same example whoever asks and whenever.

    With ``classes`` (num_examples,) an epoch has every class equally often (but for a remainder), rare examples repeated.
    """

    def __init__(self, num_examples: int, seed: int, classes: np.ndarray | None = None) -> None:
        if num_examples < 1:
            raise ValueError("a sampler needs at least one example")
        self.num_examples, self.seed = num_examples, seed
        self.classes = None if classes is None else tuple(classes.tolist())

    def indices(self, start: int, count: int) -> np.ndarray:
        """(count,) int64: the examples at positions start, start + 1, ..."""
        positions = np.arange(start, start + count)
        epochs, within = np.divmod(positions, self.num_examples)
        return np.array(
            [
                _permutation(self.num_examples, self.seed, int(e), self.classes)[w]
                for e, w in zip(epochs, within, strict=True)
            ],
            np.int64,
        )


@functools.lru_cache(maxsize=4)
def _permutation(num_examples: int, seed: int, epoch: int, classes: tuple[int, ...] | None) -> np.ndarray:
    draw = np.random.default_rng([seed, epoch])
    if classes is None:
        return draw.permutation(num_examples)
    members = [np.flatnonzero(np.array(classes) == c) for c in sorted(set(classes))]
    each = -(-num_examples // len(members))
    picked = [np.concatenate([draw.permutation(m) for _ in range(-(-each // len(m)))])[:each] for m in members]
    return draw.permutation(np.stack(picked, 1).reshape(-1)[:num_examples])
