"""Implicit language Q-learning: values of tokens, learnt offline from recorded answers and their rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..algorithms import losses, values
from ..algorithms.losses import metric
from ..batch import Batch
from ..learner.objectives import Columns, Loss, PerToken


@dataclass(frozen=True, kw_only=True)
class ImplicitQObjective(PerToken):
    """Both Q heads' TD errors and conservative terms, V's expectile loss, and the language model's cross-entropy.

    Snell et al. 2022, arXiv 2206.11871. With ``behaviour_coef`` 0 the language model is frozen and its head is not run.
    """

    gamma: float
    expectile: float
    conservative_coef: float
    behaviour_coef: float

    def loss(self, model: Any, batch: Batch, device: torch.device) -> Loss:
        """Summed over response tokens."""
        c = Columns(batch, device)
        estimates = model(c.tokens, c.lengths, c.sampled, self.behaviour_coef > 0)
        v, target_q = c.spread(estimates.values), c.spread(estimates.target_q)
        td_targets = values.td_targets(c.step_rewards, v, c.response_mask, c.lengths, self.gamma)
        total, metrics = values.expectile_loss(v, target_q, c.response_mask, self.expectile)
        td_loss, td_metrics = values.squared_td_error(c.spread(estimates.q), td_targets, c.response_mask)
        push, push_metrics = values.conservative_loss(c.spread(estimates.q_log_softmax), c.response_mask)
        total = total + td_loss + self.conservative_coef * push
        metrics |= td_metrics | push_metrics
        if estimates.log_probs is not None:
            ones = torch.ones_like(estimates.log_probs, dtype=torch.bool)
            cross_entropy, language_metrics = losses.cross_entropy(estimates.log_probs, ones)
            total = total + self.behaviour_coef * cross_entropy
            metrics |= language_metrics
        metrics |= {"value/q": metric(target_q, c.response_mask), "value/v": metric(v, c.response_mask)}
        return total, metrics
