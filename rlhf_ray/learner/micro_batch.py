"""A rank's micro-batches, and which rows of a Batch each rank gets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..batch import Batch, micro_batches

LEAST_SHARED = 0.1  # share of the tokens that shared prompts must save before groups are kept together


@dataclass(frozen=True)
class MicroBatch:
    """``rows`` (B,) of a rank's Batch, as ``batch``. A filler has no rows but a batch: its results must not count.

    ZeRO-2 and 3 hang if ranks run different numbers of micro-batches, so those with fewer rows run fillers.
    """

    batch: Batch
    rows: np.ndarray

    @property
    def is_real(self) -> bool:
        """False for a filler."""
        return len(self.rows) > 0


def plan_micro_batches(
    batch: Batch, unit: str | None, *, budget: int, world_size: int, width: int
) -> list[list[np.ndarray]]:
    """Rows of each micro-batch of each rank: ``plan[rank][i]``, empty for a filler. All ranks have as many.

    The rows are balanced over ranks by their cost in a model of hidden size ``width``; a micro-batch has at most
    ``budget`` tokens. Rows with equal values in the column ``unit`` stay together. Without a unit, groups stay together
    if that leaves out enough of their prompts.
    """
    lengths, column = batch.lengths, getattr(batch, unit) if unit else None
    if column is None and batch.has("prompt_length"):
        unshared = lengths - batch.shared_prompts
        _, group = np.unique(batch.group, return_inverse=True)
        longest_group = np.bincount(group, unshared).max(initial=0)
        if longest_group <= budget and lengths.sum() - unshared.sum() >= LEAST_SHARED * lengths.sum():
            lengths, column = unshared, batch.group
    return micro_batches(lengths, budget, world_size, column, width)
