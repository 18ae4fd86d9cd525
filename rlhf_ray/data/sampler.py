"""The order examples come in: seeded epochs, addressed by position, so that the whole state is one integer."""

from __future__ import annotations

import functools

import numpy as np


class Sampler:
    """Endless shuffled epochs over ``num_examples``. Position p means the same example whoever asks and whenever."""

    def __init__(self, num_examples: int, seed: int) -> None:
        if num_examples < 1:
            raise ValueError("a sampler needs at least one example")
        self.num_examples, self.seed = num_examples, seed

    def indices(self, start: int, count: int) -> np.ndarray:
        """(count,) int64: the examples at positions start, start + 1, ..."""
        positions = np.arange(start, start + count)
        epochs, within = np.divmod(positions, self.num_examples)
        return np.array(
            [_permutation(self.num_examples, self.seed, int(e))[w] for e, w in zip(epochs, within, strict=True)],
            np.int64,
        )


@functools.lru_cache(maxsize=4)
def _permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_examples)
