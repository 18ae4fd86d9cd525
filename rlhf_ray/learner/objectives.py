"""Objectives: what is minimised, as sums, and what the sums are divided by.

``weight(batch)`` is the divisor of a whole optimizer step over all ranks; ``loss(model, batch, device)`` is the sum over a
micro-batch and its metrics. The learner divides once, so neither micro-batches nor ranks change the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from ..algorithms import kl, losses
from ..batch import Batch
from ..config import AlgorithmConfig
from ..models.log_probs import before

Loss = tuple[Tensor, dict[str, Any]]
"""The sum over a micro-batch, and metrics as (sum, count)."""


class Objective(Protocol):
    """A loss over a Batch; ``unit`` names the column whose rows a micro-batch must not separate, if any."""

    @property
    def unit(self) -> str | None: ...

    def weight(self, batch: Batch) -> float: ...

    def loss(self, model: Any, batch: Batch, device: torch.device) -> Loss: ...


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


@dataclass(frozen=True)
class PolicyObjective(PerToken):
    """The policy loss of an algorithm, with entropy bonus and KL in the loss."""

    algorithm: AlgorithmConfig
    kl_coef: float
    temperature: float
    max_new_tokens: int
    importance: bool

    def weight(self, batch: Batch) -> float:
        """Response tokens, sequences or samples times max_new_tokens, as algorithm.loss_over says."""
        mask, lengths = torch.tensor(batch.response_mask), torch.tensor(batch.lengths)
        return losses.weight(mask, lengths, self.algorithm.loss_over, self.max_new_tokens)

    def loss(self, model: Any, batch: Batch, device: torch.device) -> Loss:
        """Sum of the per-token losses over the micro-batch."""
        c, a = Columns(batch, device), self.algorithm
        new, entropy = map(
            c.spread, model(c.tokens, c.lengths, c.sampled, self.temperature, a.entropy_coef > 0, c.shared_prompts)
        )
        if not batch.has("old_log_probs"):  # the only update of its step: these are the old ones
            c.fill("old_log_probs", new.detach())
        weights, metrics = self._importance(c)
        per_token = POLICY_LOSSES[a.type](new, c, a)
        total = losses.aggregate(per_token, c.response_mask, c.lengths, a.loss_over, weights)
        if a.kl.where == "loss" and self.kl_coef > 0:
            penalty = kl.estimate(a.kl.estimator, new, c.ref_log_probs, c.response_mask)
            total = total + self.kl_coef * losses.aggregate(penalty, c.response_mask, c.lengths, a.loss_over)
        if a.entropy_coef > 0:
            total = total - a.entropy_coef * losses.aggregate(entropy, c.response_mask, c.lengths, a.loss_over)
        metrics |= losses.policy_metrics(
            new.detach(), c.old_log_probs, c.advantages, c.response_mask, c.lengths,
            getattr(a, "clip_low", None), a.clip_high, sequence_ratio=a.type == "gspo",
        )  # fmt: skip
        metrics |= losses.entropy_sum(entropy.detach(), c.response_mask)[1]
        metrics["policy/loss"] = (total.detach(), self.weight(batch))
        return total, metrics

    def _importance(self, c: Columns) -> tuple[Tensor | None, dict[str, Any]]:
        cap = self.algorithm.importance_cap
        metrics: dict[str, Any] = dict(
            losses.importance_metrics(c.old_log_probs, c.rollout_log_probs, c.response_mask, cap)
        )
        if not self.importance:
            return None, metrics
        weights = losses.importance_weights(c.old_log_probs, c.rollout_log_probs, c.response_mask, cap)
        if self.algorithm.type == "gspo":
            weights = losses.sequence_importance(weights, c.response_mask, c.lengths)
        return weights, metrics


def _token_ratio(new: Tensor, c: Columns, a: Any) -> Tensor:
    return losses.clipped_policy(
        new, c.old_log_probs, c.advantages, c.response_mask, a.clip_low, a.clip_high, a.dual_clip
    )


def _sequence_ratio(new: Tensor, c: Columns, a: Any) -> Tensor:
    return losses.gspo(new, c.old_log_probs, c.advantages, c.response_mask, c.lengths, a.clip_low, a.clip_high)


def _clipped_weight(new: Tensor, c: Columns, a: Any) -> Tensor:
    return losses.cispo(new, c.old_log_probs, c.advantages, c.response_mask, a.clip_high)


POLICY_LOSSES: dict[str, Callable[[Tensor, Columns, Any], Tensor]] = {
    "ppo": _token_ratio,
    "grpo": _token_ratio,
    "dr_grpo": _token_ratio,
    "dapo": _token_ratio,
    "rloo": _token_ratio,
    "reinforce": _token_ratio,
    "reinforce_plus_plus": _token_ratio,
    "reinforce_plus_plus_baseline": _token_ratio,
    "remax": _token_ratio,
    "gspo": _sequence_ratio,
    "cispo": _clipped_weight,
}


@dataclass(frozen=True)
class ValueObjective(PerToken):
    """The critic's clipped regression on the returns."""

    clip: float | None

    def loss(self, model: Any, batch: Batch, device: torch.device) -> Loss:
        """Half the squared error, summed over response tokens."""
        c = Columns(batch, device)
        values = c.spread(model(c.tokens, c.lengths, before(c.sampled), c.shared_prompts))
        return losses.value_loss(values, c.values, c.returns, c.response_mask, self.clip)
