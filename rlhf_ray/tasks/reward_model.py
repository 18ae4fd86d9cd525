"""Reward models: from preference pairs, labels, scores, or the steps of a reasoning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..algorithms import losses
from ..batch import Batch
from ..learner.objectives import Columns, Loss, PerPair, PerRow, PerToken, final_positions


class FinalScores:
    """Predictions of a reward model that scores whole sequences."""

    def predict(self, model: Any, batch: Batch, device: torch.device) -> list[np.ndarray]:
        """The score () of each sequence, read at its last token."""
        return list(final_scores(model, Columns(batch, device)).cpu().numpy())


def final_scores(model: Any, c: Columns) -> Tensor:
    """(B,) float32, read at each sequence's last token; the prompt of a group is computed once."""
    scores: Tensor = model(c.tokens, c.lengths, final_positions(c.lengths), c.shared_prompts)
    return scores


@dataclass(frozen=True)
class PairwiseObjective(FinalScores, PerPair):
    """Bradley-Terry on preference pairs."""

    centre_coef: float = 0.0

    def loss(self, model: Any, batch: Batch, device: torch.device) -> Loss:
        """Summed over pairs."""
        c = Columns(batch, device)
        return losses.bradley_terry(final_scores(model, c), c.labels[:, 0], c.group, c.labels[:, 1], self.centre_coef)


@dataclass(frozen=True)
class RowObjective(FinalScores, PerRow):
    """A loss of each row's score and label: cross-entropy of labels 0 and 1 (the logit is the reward), or squared error."""

    name: Literal["labelled", "scores"]

    def loss(self, model: Any, batch: Batch, device: torch.device) -> Loss:
        """Summed over rows."""
        c = Columns(batch, device)
        return ROW_LOSSES[self.name](model(c.tokens, c.lengths, final_positions(c.lengths)), c.labels[:, 0])


ROW_LOSSES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, losses.Metrics]]] = {
    "labelled": losses.binary_cross_entropy,
    "scores": losses.squared_error,
}


@dataclass(frozen=True)
class StepObjective(PerToken):
    """Cross-entropy of ``targets`` 0 and 1 at the ends of steps (response_mask): a process reward model.

    Lightman et al. 2023, arXiv 2305.20050; the logit is the step's reward.
    """

    def loss(self, model: Any, batch: Batch, device: torch.device) -> Loss:
        """Summed over steps."""
        c = Columns(batch, device)
        return losses.binary_cross_entropy(model(c.tokens, c.lengths, c.sampled), c.targets[c.sampled].float())
