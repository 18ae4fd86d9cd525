"""Causal language modelling: pre-training on text, and the auxiliary loss of PPO-ptx."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..algorithms import losses
from ..algorithms.noise import embedding_noise
from ..batch import Batch
from ..learner.objectives import Columns, Loss, PerToken


@dataclass(frozen=True)
class LanguageModelObjective(PerToken):
    """Cross-entropy of the tokens in response_mask: pre-training, supervised fine-tuning, PPO-ptx.

    ``neftune_alpha`` above 0 adds noise to the embeddings if a gradient is taken; a row's noise is drawn from its ``seed``.
    """

    neftune_alpha: float = 0.0

    def loss(self, model: Any, batch: Batch, device: torch.device) -> Loss:
        """Summed negative log-probs in nats."""
        c = Columns(batch, device)
        noise = None
        if self.neftune_alpha and torch.is_grad_enabled():
            noise = embedding_noise(c.lengths, model.embedding_width, self.neftune_alpha, batch.seed.tolist())
        log_probs, _ = model(c.tokens, c.lengths, c.sampled, noise=noise)
        return losses.cross_entropy(log_probs, torch.ones_like(log_probs, dtype=torch.bool))
