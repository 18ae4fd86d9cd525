"""Chunk: a rollout worker's unit of work, and the seed of each sample; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some prompts of a step and how often to sample each. The rows do not depend on the worker that generates them."""

    step: int
    run_seed: int
    prompts: list[np.ndarray]
    """Tokens (P,) int32 of each prompt."""
    example_id: list[int]
    """The dataset's example of each prompt."""
    group: list[int]
    """The number of each prompt in the whole run."""
    first_sample: list[int]
    """The number of each prompt's first sample; above 0 if the step has visited the example before."""
    samples: int
    """Sampled responses to each prompt."""
    greedy_extra: bool = False
    """Whether a greedy response follows them (ReMax's baseline), which no loss learns from."""
    greedy: bool = False
    """Whether every response is greedy."""

    @property
    def rows_per_prompt(self) -> int:
        """Rows of the Batch for each prompt."""
        return self.samples + self.greedy_extra

    def __len__(self) -> int:
        """Rows of the Batch."""
        return len(self.prompts) * self.rows_per_prompt


def sample_seed(run_seed: int, step: int, example_id: int, sample: int) -> int:
    """The seed of one sample (uint64). It depends on the sample alone, so any worker generates the same tokens."""
    return int(np.random.SeedSequence([run_seed, step, example_id, sample]).generate_state(1, np.uint64)[0])
