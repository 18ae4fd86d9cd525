"""Objectives: what is minimised, as sums, and what the sums are divided by.

``weight(batch)`` is the divisor of a whole optimizer step over all ranks; ``loss(model, batch, device)`` is the sum
over a micro-batch and its metrics. The learner divides once, so neither micro-batches nor ranks change the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..batch import Batch

Loss = tuple[Tensor, dict[str, Any]]
"""The sum over a micro-batch, and metrics as (sum, count)."""


class Objective(Protocol):
    """A loss over a Batch; ``unit`` names the column whose rows a micro-batch must not separate, if any."""

    @property
    def unit(self) -> str | None: ...

    def weight(self, batch: Batch) -> float: ...

    def loss(self, model: Any, batch: Batch, device: torch.device) -> Loss: ...


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """``coef`` times the mean of ``objective``: one term of the loss of each of a number of optimizer steps.

    ``rows[i]`` (n,) int: the rows of ``batch`` that optimizer step i reads. ``batch``: a Batch, or a Ray reference to
    one. For example, two steps on four samples, each with two rows of pre-training text:

        policy = LossTerm(objective=PolicyObjective(...), coef=1.0, batch=samples, rows=[[0, 2], [1, 3]])
        text = LossTerm(objective=LanguageModelObjective(), coef=27.8, batch=corpus, rows=[[4, 5], [6, 7]])
        learners.update("actor", [policy, text])

    Step 0 minimises the policy loss of samples 0 and 2 plus 27.8 times the cross-entropy of texts 4 and 5.
    """

    objective: Objective
    coef: float
    batch: Any
    rows: Sequence[np.ndarray]


class PerToken:
    """An objective that is averaged over response tokens."""

    unit: str | None = None

    def weight(self, batch: Batch) -> float:
        """Tokens in response_mask."""
        return float(batch.response_mask.sum())


class PerRow:
    """An objective that is averaged over rows."""

    unit: str | None = None

    def weight(self, batch: Batch) -> float:
        """Rows."""
        return float(len(batch))


class PerPair:
    """An objective that is averaged over pairs. The two rows of a pair stay in one micro-batch."""

    unit: str | None = "group"

    def weight(self, batch: Batch) -> float:
        """Pairs: rows whose first label is 1."""
        return float(batch.labels[:, 0].sum())


class Columns:
    """The columns of a Batch as tensors on a device. Each is made when it is first read."""

    def __init__(self, batch: Batch, device: torch.device) -> None:
        self._batch, self._device = batch, device

    def __getattr__(self, name: str) -> Tensor:
        column = torch.tensor(getattr(self._batch, name), device=self._device)
        column = column.long() if column.dtype == torch.int32 else column
        setattr(self, name, column)
        return column

    @cached_property
    def sampled(self) -> Tensor:
        """Flat positions (R,) int64 of the tokens in response_mask."""
        return torch.nonzero(self.response_mask).squeeze(-1)

    def fill(self, name: str, column: Tensor) -> None:
        """Sets a column that the Batch does not have."""
        setattr(self, name, column)

    def spread(self, values: Tensor) -> Tensor:
        """Values (..., R) of the sampled tokens as (..., T), zero elsewhere."""
        return values.new_zeros(*values.shape[:-1], len(self.tokens)).index_copy(-1, self.sampled, values)


def final_positions(lengths: Tensor) -> Tensor:
    """Flat position (B,) of each sequence's last token, where a reward model's score is read."""
    return torch.cumsum(lengths, 0) - 1
