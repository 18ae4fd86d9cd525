"""Masked language modelling (BERT): tokens are hidden and predicted from both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..algorithms import losses
from ..batch import Batch
from ..learner.objectives import Columns, Loss, PerToken


@dataclass(frozen=True)
class TokenObjective(PerToken):
    """Cross-entropy of ``targets`` at the tokens in response_mask: masked tokens, or the tags of words.

    Devlin et al. 2018, arXiv 1810.04805. ``name`` is the name in metrics.
    """

    name: str

    def loss(self, model: Any, batch: Batch, device: torch.device) -> Loss:
        """Summed over these tokens."""
        c = Columns(batch, device)
        logits, targets = model(c.tokens, c.lengths, c.sampled), c.targets[c.sampled]
        loss = F.cross_entropy(logits, targets, reduction="none")
        ones = torch.ones_like(loss)
        return loss.sum(), {
            f"loss/{self.name}": losses.metric(loss, ones),
            f"{self.name}/accuracy": losses.metric(logits.argmax(-1) == targets, ones),
        }

    def predict(self, model: Any, batch: Batch, device: torch.device) -> list[np.ndarray]:
        """The likeliest class of each of these tokens: one int64 array for each sequence."""
        c = Columns(batch, device)
        classes = model(c.tokens, c.lengths, c.sampled).argmax(-1).cpu().numpy()
        return np.split(classes, np.cumsum(batch.response_lengths)[:-1])
