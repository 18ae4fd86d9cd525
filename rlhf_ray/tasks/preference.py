"""Preference optimisation without sampling: DPO, IPO, ORPO and SimPO on pairs, KTO on single answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..algorithms import losses, preferences
from ..algorithms.advantages import sequence_mean, sequence_sum
from ..batch import Batch
from ..config import DPO, IPO, KTO, ORPO, SimPO
from ..learner.objectives import Columns, Loss, PerPair, PerRow


@dataclass(frozen=True)
class PairObjective(PerPair):
    """DPO, IPO, ORPO or SimPO on pairs: the chosen and the rejected row share a group."""

    config: DPO | IPO | ORPO | SimPO

    def loss(self, model: Any, batch: Batch, device: torch.device) -> Loss:
        """Summed over pairs."""
        c, a = Columns(batch, device), self.config
        log_probs = response_log_probs(model, c)
        if isinstance(a, DPO | IPO):
            log_probs = log_probs - c.ref_log_probs
        if isinstance(a, DPO):
            score = sequence_sum(log_probs, c.lengths)
        else:
            score = sequence_mean(log_probs, c.response_mask, c.lengths)
        chosen, rejected = (score[rows] for rows in losses.sides(c.labels[:, 0], c.group))
        if isinstance(a, DPO):
            return preferences.dpo(chosen, rejected, a.beta, a.label_smoothing)
        if isinstance(a, IPO):
            return preferences.ipo(chosen, rejected, a.beta)
        if isinstance(a, ORPO):
            return preferences.orpo(chosen, rejected, a.beta)
        return preferences.simpo(chosen, rejected, a.beta, a.margin)


@dataclass(frozen=True)
class DesirableObjective(PerRow):
    """KTO on single answers, labels 1 (desirable) or 0. ``reference_point`` is the step's, over all ranks."""

    config: KTO
    reference_point: float = 0.0

    def loss(self, model: Any, batch: Batch, device: torch.device) -> Loss:
        """Summed over rows."""
        c, a = Columns(batch, device), self.config
        ratio = sequence_sum(response_log_probs(model, c) - c.ref_log_probs, c.lengths)
        point = self.reference_point
        total, metrics = preferences.kto(ratio, c.labels[:, 0], a.beta, point, a.desirable_weight, a.undesirable_weight)
        return total, metrics | {"preference/reference_point": (point * len(batch), float(len(batch)))}


def response_log_probs(model: Any, c: Columns) -> Tensor:
    """Log-probs (T,) of the response's tokens, 0 elsewhere."""
    return c.spread(model(c.tokens, c.lengths, c.sampled, 1.0, False, c.shared_prompts)[0])


def log_ratios(batch: Batch) -> Tensor:
    """(B,) log of policy over reference, summed over each response; reads old_log_probs and ref_log_probs."""
    return sequence_sum(torch.tensor(batch.old_log_probs - batch.ref_log_probs), torch.tensor(batch.lengths))
