"""The objective of offline value learning: implicit language Q-learning on recorded samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..algorithms import losses, values
from ..algorithms.losses import metric
from ..batch import Batch
from .objectives import Columns


@dataclass(frozen=True)
class ImplicitQObjective:
    """Both Q heads' TD errors and conservative terms, V's expectile loss, and the language model's cross-entropy.

    Snell et al. 2022, arXiv 2206.11871. ``behaviour_coef`` 0: the language model is frozen, its head is not even run.
    """

    gamma: float
    expectile: float
    conservative_coef: float
    behaviour_coef: float
    unit: str | None = None

    def weight(self, batch: Batch) -> float:
        """Response tokens."""
        return float(batch.response_mask.sum())

    def loss(self, model: Any, batch: Batch, device: torch.device) -> tuple[Tensor, dict[str, Any]]:
        """Summed over response tokens."""
        c = Columns(batch, device)
        at = torch.nonzero(c.response_mask).squeeze(-1)
        found = model(c.tokens, c.lengths, at, self.behaviour_coef > 0)
        v, target_q = c.spread(found.values, at), c.spread(found.target_q, at)
        y = values.td_targets(c.step_rewards, v, c.response_mask, c.lengths, self.gamma)
        total, metrics = values.expectile_loss(v, target_q, c.response_mask, self.expectile)
        error, more = values.squared_td_error(c.spread(found.q, at), y, c.response_mask)
        push, shown = values.conservative_loss(c.spread(found.q_log_softmax, at), c.response_mask)
        total = total + error + self.conservative_coef * push
        metrics |= more | shown
        if found.log_probs is not None:
            every = torch.ones_like(found.log_probs, dtype=torch.bool)
            cross_entropy, shown = losses.cross_entropy(found.log_probs, every)
            total = total + self.behaviour_coef * cross_entropy
            metrics |= shown
        metrics |= {"value/q": metric(target_q, c.response_mask), "value/v": metric(v, c.response_mask)}
        return total, metrics
