"""Classification of texts: weighted or focal cross-entropy, accuracy, F1 and calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..algorithms import losses
from ..batch import Batch
from ..learner.objectives import Columns, Loss, PerRow


@dataclass(frozen=True)
class ClassObjective(PerRow):
    """Cross-entropy of a sequence's class times the weight of that class; focal if ``gamma`` is above 0.

    The focal factor ``(1 - p)^gamma`` shrinks the loss of examples that are already predicted well
    (Lin et al. 2017, arXiv 1708.02002).
    """

    class_weights: tuple[float, ...]
    gamma: float = 0.0

    def weight(self, batch: Batch) -> float:
        """Rows, each counted by the weight of its class."""
        return float(np.asarray(self.class_weights)[batch.labels[:, 0].astype(int)].sum())

    def loss(self, model: Any, batch: Batch, device: torch.device) -> Loss:
        """Summed over rows."""
        c = Columns(batch, device)
        logits, classes = model(c.tokens, c.lengths), c.labels[:, 0].long()
        plain = F.cross_entropy(logits, classes, reduction="none")
        weights = torch.tensor(self.class_weights, device=device)[classes]
        loss = weights * (1 - torch.exp(-plain)) ** self.gamma * plain if self.gamma else weights * plain
        ones = torch.ones_like(plain)
        return loss.sum(), {
            "loss/cross_entropy": losses.metric(plain, ones),
            "class/accuracy": losses.metric(logits.argmax(-1) == classes, ones),
        }

    def predict(self, model: Any, batch: Batch, device: torch.device) -> list[np.ndarray]:
        """Probabilities (classes,) of each sequence."""
        c = Columns(batch, device)
        return list(model(c.tokens, c.lengths).softmax(-1).cpu().numpy())
