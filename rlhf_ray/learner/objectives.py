"""Objectives: what is minimised, as sums, and what the sums are divided by.

``weight(batch)`` is the divisor of a whole optimizer step over all ranks; ``loss(model, batch, device)`` is the sum over a
micro-batch and its metrics. The learner divides once, so neither micro-batches nor ranks change the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ..algorithms import kl, losses
from ..algorithms.noise import embedding_noise
from ..batch import Batch
from ..config import AlgorithmConfig


class Objective(Protocol):
    """A loss over a Batch; ``unit`` names the column whose rows a micro-batch must not separate, if any."""

    @property
    def unit(self) -> str | None: ...

    def weight(self, batch: Batch) -> float: ...

    def loss(self, model: Any, batch: Batch, device: torch.device) -> tuple[Tensor, dict[str, Any]]: ...


class Columns:
    """The columns of a Batch as tensors on a device, made when they are read."""

    def __init__(self, batch: Batch, device: torch.device) -> None:
        self._batch, self._device = batch, device

    def __getattr__(self, name: str) -> Tensor:
        column = torch.tensor(getattr(self._batch, name), device=self._device)
        column = column.long() if column.dtype == torch.int32 else column
        setattr(self, name, column)
        return column

    def fill(self, name: str, column: Tensor) -> None:
        """Sets a column that the Batch does not have."""
        setattr(self, name, column)

    def spread(self, values: Tensor, at: Tensor) -> Tensor:
        """Values (..., R) at flat positions (R,), zero elsewhere: (..., T)."""
        return values.new_zeros(*values.shape[:-1], len(self.tokens)).index_copy(-1, at, values)


@dataclass(frozen=True)
class PolicyObjective:
    """The policy loss of an algorithm, with entropy bonus and KL in the loss."""

    algorithm: AlgorithmConfig
    kl_coef: float
    temperature: float
    max_new_tokens: int
    importance: bool
    unit: str | None = None

    def weight(self, batch: Batch) -> float:
        """Response tokens, sequences or samples times max_new_tokens, as algorithm.loss_over says."""
        mask, lengths = torch.tensor(batch.response_mask), torch.tensor(batch.lengths)
        return losses.weight(mask, lengths, self.algorithm.loss_over, self.max_new_tokens)

    def loss(self, model: Any, batch: Batch, device: torch.device) -> tuple[Tensor, dict[str, Any]]:
        """Sum of the per-token losses over the micro-batch."""
        c, a = Columns(batch, device), self.algorithm
        at = torch.nonzero(c.response_mask).squeeze(-1)
        new, entropy = (
            c.spread(x, at)
            for x in model(c.tokens, c.lengths, at, self.temperature, a.entropy_coef > 0, c.shared_prompts)
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
class ValueObjective:
    """The critic's clipped regression on the returns."""

    clip: float | None
    unit: str | None = None

    def weight(self, batch: Batch) -> float:
        """Response tokens."""
        return float(batch.response_mask.sum())

    def loss(self, model: Any, batch: Batch, device: torch.device) -> tuple[Tensor, dict[str, Any]]:
        """Half the squared error, summed over response tokens."""
        c = Columns(batch, device)
        at = torch.nonzero(c.response_mask).squeeze(-1)
        values = c.spread(model(c.tokens, c.lengths, at - 1, c.shared_prompts), at)
        return losses.value_loss(values, c.values, c.returns, c.response_mask, self.clip)


@dataclass(frozen=True)
class LanguageModelObjective:
    """Cross-entropy of the tokens in response_mask: pre-training, supervised fine-tuning, PPO-ptx.

    ``neftune_alpha`` above 0 puts noise on the embeddings where a gradient is taken, each row's from its ``seed``.
    """

    unit: str | None = None
    neftune_alpha: float = 0.0

    def weight(self, batch: Batch) -> float:
        """Tokens the loss is taken on."""
        return float(batch.response_mask.sum())

    def loss(self, model: Any, batch: Batch, device: torch.device) -> tuple[Tensor, dict[str, Any]]:
        """Summed negative log-probs in nats."""
        c = Columns(batch, device)
        at = torch.nonzero(c.response_mask).squeeze(-1)
        noise = None
        if self.neftune_alpha and torch.is_grad_enabled():
            noise = embedding_noise(c.lengths, model.embedding_width, self.neftune_alpha, batch.seed.tolist())
        log_probs, _ = model(c.tokens, c.lengths, at, noise=noise)
        return losses.cross_entropy(log_probs, torch.ones_like(log_probs, dtype=torch.bool))


def final_positions(lengths: Tensor) -> Tensor:
    """Flat position (B,) of each sequence's last token, where a reward model's score is read."""
    return torch.cumsum(lengths, 0) - 1


class Scores:
    """What reward models say of a sequence."""

    def predict(self, model: Any, batch: Batch, device: torch.device) -> list[np.ndarray]:
        """The score () of each sequence, read at its last token."""
        c = Columns(batch, device)
        return list(model(c.tokens, c.lengths, final_positions(c.lengths), c.shared_prompts).cpu().numpy())


@dataclass(frozen=True)
class PairwiseObjective(Scores):
    """Bradley-Terry on preference pairs; the two sides of a pair stay in one micro-batch."""

    centre_coef: float = 0.0
    unit: str | None = "group"

    def weight(self, batch: Batch) -> float:
        """Pairs."""
        return float(batch.labels[:, 0].sum())

    def loss(self, model: Any, batch: Batch, device: torch.device) -> tuple[Tensor, dict[str, Any]]:
        """Summed over pairs."""
        c = Columns(batch, device)
        scores = model(c.tokens, c.lengths, final_positions(c.lengths), c.shared_prompts)
        return losses.bradley_terry(scores, c.labels[:, 0], c.group, c.labels[:, 1], self.centre_coef)


@dataclass(frozen=True)
class RowObjective(Scores):
    """A loss of each row's score and label: cross-entropy of labels 0 and 1 (the logit is the reward), or squared error."""

    name: Literal["labelled", "scores"]
    unit: str | None = None

    def weight(self, batch: Batch) -> float:
        """Rows."""
        return float(len(batch))

    def loss(self, model: Any, batch: Batch, device: torch.device) -> tuple[Tensor, dict[str, Any]]:
        """Summed over rows."""
        c = Columns(batch, device)
        return ROW_LOSSES[self.name](model(c.tokens, c.lengths, final_positions(c.lengths)), c.labels[:, 0])


ROW_LOSSES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, losses.Metrics]]] = {
    "labelled": losses.binary_cross_entropy,
    "scores": losses.squared_error,
}


@dataclass(frozen=True)
class StepObjective:
    """Cross-entropy of ``targets`` 0 and 1 at the ends of steps (response_mask): a process reward model.

    Lightman et al. 2023, arXiv 2305.20050; the logit is the step's reward.
    """

    unit: str | None = None

    def weight(self, batch: Batch) -> float:
        """Steps."""
        return float(batch.response_mask.sum())

    def loss(self, model: Any, batch: Batch, device: torch.device) -> tuple[Tensor, dict[str, Any]]:
        """Summed over steps."""
        c = Columns(batch, device)
        at = torch.nonzero(c.response_mask).squeeze(-1)
        return losses.binary_cross_entropy(model(c.tokens, c.lengths, at), c.targets[at].float())
