"""Encoder-decoders: translation and summaries, measured by BLEU and chrF."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..algorithms import losses
from ..batch import Batch
from ..learner.objectives import Columns, Loss, PerToken


@dataclass(frozen=True)
class Seq2SeqObjective(PerToken):
    """Cross-entropy of the target tokens (response_mask) given the source tokens before them (prompt_length).

    ``label_smoothing`` changes the loss, not the metrics. ``max_new_tokens`` is the longest translation of ``predict``.
    """

    label_smoothing: float = 0.0
    max_new_tokens: int = 128

    def loss(self, model: Any, batch: Batch, device: torch.device) -> Loss:
        """Summed over target tokens."""
        c = Columns(batch, device)
        logits = model(c.tokens, c.lengths, c.prompt_length)
        return losses.smoothed_cross_entropy(logits, c.tokens[c.response_mask.bool()], self.label_smoothing)

    def predict(self, model: Any, batch: Batch, device: torch.device) -> list[np.ndarray]:
        """Tokens of the greedy translation of each source."""
        c = Columns(batch, device)
        return [t.cpu().numpy() for t in model.translate(c.tokens, c.lengths, c.prompt_length, self.max_new_tokens)]
