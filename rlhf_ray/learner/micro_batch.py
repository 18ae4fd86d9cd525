"""MicroBatch: the rows of one forward and backward pass of a rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..batch import Batch


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
