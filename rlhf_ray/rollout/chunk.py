"""Chunk: what a rollout worker is asked for, and the seed of each sample. Imports no torch: whoever hands it on stays light."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Chunk:
    """The unit of dispatch: its rows depend on (step, index) alone, never on the worker that computes it.

    ``group`` numbers prompts over the whole run; ``first_sample`` sets apart two visits to one example in a step.
    """

    step: int
    run_seed: int
    prompts: list[np.ndarray]
    example_id: list[int]
    group: list[int]
    first_sample: list[int]
    samples: int
    greedy_extra: bool = False
    greedy: bool = False

    def __len__(self) -> int:
        return len(self.prompts) * (self.samples + self.greedy_extra)


def sample_seed(run_seed: int, step: int, example_id: int, sample: int) -> int:
    """The seed of one sample: it depends on what is sampled, not on who samples it."""
    return int(np.random.SeedSequence([run_seed, step, example_id, sample]).generate_state(1, np.uint64)[0])
