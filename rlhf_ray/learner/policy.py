"""Objectives of reinforcement learning: the policy loss of each algorithm, and the critic's regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..algorithms import kl, losses
from ..algorithms.registry import ALGORITHMS, Algorithm, PolicyTensors
from ..batch import Batch
from ..config import AlgorithmConfig
from ..models.positions import predicting_positions
from .objectives import Columns, Loss, PerToken


@dataclass(frozen=True, kw_only=True)
class PolicyObjective(PerToken):
    """The policy loss of an algorithm, with the entropy bonus and the KL penalty in the loss.

    ``use_importance_weights``: whether tokens are weighted for what the engine's weights differ from the learner's.
    """

    config: AlgorithmConfig
    kl_coef: float
    temperature: float
    max_new_tokens: int
    use_importance_weights: bool

    @property
    def algorithm(self) -> Algorithm:
        """The record of the algorithm."""
        return ALGORITHMS[self.config.type]

    def weight(self, batch: Batch) -> float:
        """Response tokens, sequences, or sequences times max_new_tokens, as ``loss_over`` says."""
        mask, lengths = torch.tensor(batch.response_mask), torch.tensor(batch.lengths)
        return losses.weight(mask, lengths, self.config.loss_over, self.max_new_tokens)

    def loss(self, model: Any, batch: Batch, device: torch.device) -> Loss:
        """Sum of the per-token losses over the micro-batch, and its metrics."""
        c, a = Columns(batch, device), self.config
        log_probs, entropy = map(
            c.spread, model(c.tokens, c.lengths, c.sampled, self.temperature, a.entropy_coef > 0, c.shared_prompts)
        )
        if not batch.has("old_log_probs"):  # the only update of its step: these are the old ones
            c.fill("old_log_probs", log_probs.detach())
        weights, metrics = self._weigh(c)
        total = losses.aggregate(self._per_token(c, log_probs), c.response_mask, c.lengths, a.loss_over, weights)
        if a.kl.where == "loss" and self.kl_coef > 0:
            penalty = kl.estimate(a.kl.estimator, log_probs, c.ref_log_probs, c.response_mask)
            total = total + self.kl_coef * losses.aggregate(penalty, c.response_mask, c.lengths, a.loss_over)
        if a.entropy_coef > 0:
            total = total - a.entropy_coef * losses.aggregate(entropy, c.response_mask, c.lengths, a.loss_over)
        metrics |= losses.policy_metrics(
            log_probs.detach(),
            c.old_log_probs,
            c.advantages,
            c.response_mask,
            c.lengths,
            getattr(a, "clip_low", None),
            a.clip_high,
            sequence_ratio=self.algorithm.sequence_ratio,
        )
        metrics |= losses.entropy_sum(entropy.detach(), c.response_mask)[1]
        metrics["policy/loss"] = (total.detach(), self.weight(batch))
        return total, metrics

    def _per_token(self, c: Columns, log_probs: Tensor) -> Tensor:
        """The algorithm's loss of each token (T,)."""
        tensors = PolicyTensors(
            log_probs=log_probs,
            old_log_probs=c.old_log_probs,
            advantages=c.advantages,
            response_mask=c.response_mask,
            lengths=c.lengths,
        )
        assert self.algorithm.policy_loss is not None, f"{self.config.type} learns from preference pairs"
        return self.algorithm.policy_loss(tensors, self.config)

    def _weigh(self, c: Columns) -> tuple[Tensor | None, dict[str, Any]]:
        """Importance weights (T,), None if they are off, and the metrics of the mismatch in either case."""
        cap = self.config.importance_cap
        metrics: dict[str, Any] = dict(
            losses.importance_metrics(c.old_log_probs, c.rollout_log_probs, c.response_mask, cap)
        )
        if not self.use_importance_weights:
            return None, metrics
        weights = losses.importance_weights(c.old_log_probs, c.rollout_log_probs, c.response_mask, cap)
        if self.algorithm.sequence_ratio:
            weights = losses.sequence_importance(weights, c.response_mask, c.lengths)
        return weights, metrics


@dataclass(frozen=True)
class ValueObjective(PerToken):
    """The critic's regression on the returns, clipped at ``clip`` in units of the return; None: not clipped."""

    clip: float | None

    def loss(self, model: Any, batch: Batch, device: torch.device) -> Loss:
        """Half the squared error, summed over response tokens."""
        c = Columns(batch, device)
        values = c.spread(model(c.tokens, c.lengths, predicting_positions(c.sampled), c.shared_prompts))
        return losses.value_loss(values, c.values, c.returns, c.response_mask, self.clip)
