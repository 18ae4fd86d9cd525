"""Objectives of preference optimisation: a causal model's log-probs of whole responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..algorithms import losses, preferences
from ..algorithms.advantages import sequence_mean, sequence_sum
from ..batch import Batch
from ..config import DPO, IPO, KTO, ORPO, SimPO
from .objectives import Columns


@dataclass(frozen=True)
class PairObjective:
    """DPO, IPO, ORPO or SimPO on pairs (chosen and rejected rows share a group); the sides stay in one micro-batch."""

    config: DPO | IPO | ORPO | SimPO
    unit: str | None = "group"

    def weight(self, batch: Batch) -> float:
        """Pairs."""
        return float(batch.labels[:, 0].sum())

    def loss(self, model: Any, batch: Batch, device: torch.device) -> tuple[Tensor, dict[str, Any]]:
        """Summed over pairs."""
        c, a = Columns(batch, device), self.config
        values = response_log_probs(model, c)
        if isinstance(a, DPO | IPO):
            values = values - c.ref_log_probs
        per_token = not isinstance(a, DPO)
        score = sequence_mean(values, c.response_mask, c.lengths) if per_token else sequence_sum(values, c.lengths)
        chosen, rejected = (score[rows] for rows in losses.sides(c.labels[:, 0], c.group))
        if isinstance(a, DPO):
            return preferences.dpo(chosen, rejected, a.beta, a.label_smoothing)
        if isinstance(a, IPO):
            return preferences.ipo(chosen, rejected, a.beta)
        if isinstance(a, ORPO):
            return preferences.orpo(chosen, rejected, a.beta)
        return preferences.simpo(chosen, rejected, a.beta, a.margin)


@dataclass(frozen=True)
class DesirableObjective:
    """KTO on single answers, labels 1 (desirable) or 0. ``reference_point`` is the step's, over all ranks."""

    config: KTO
    reference_point: float = 0.0
    unit: str | None = None

    def weight(self, batch: Batch) -> float:
        """Rows."""
        return float(len(batch))

    def loss(self, model: Any, batch: Batch, device: torch.device) -> tuple[Tensor, dict[str, Any]]:
        """Summed over rows."""
        c, a = Columns(batch, device), self.config
        ratio = sequence_sum(response_log_probs(model, c) - c.ref_log_probs, c.lengths)
        point = self.reference_point
        total, metrics = preferences.kto(ratio, c.labels[:, 0], a.beta, point, a.desirable_weight, a.undesirable_weight)
        return total, metrics | {"preference/reference_point": (point * len(batch), float(len(batch)))}


def response_log_probs(model: Any, c: Columns) -> Tensor:
    """Log-probs (T,) of the response's tokens, 0 elsewhere."""
    at = torch.nonzero(c.response_mask).squeeze(-1)
    return c.spread(model(c.tokens, c.lengths, at, 1.0, False, c.shared_prompts)[0], at)


def log_ratios(batch: Batch) -> Tensor:
    """(B,) of policy to reference, summed over each response's tokens; wants old_log_probs and ref_log_probs."""
    return sequence_sum(torch.tensor(batch.old_log_probs - batch.ref_log_probs), torch.tensor(batch.lengths))
