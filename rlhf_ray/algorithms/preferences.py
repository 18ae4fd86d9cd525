"""Preference optimisation without sampling: losses of sequence log-probs, as sums over pairs or rows.

Every input is (P,): one number for each pair (or row), the sum or the mean of a response's token log-probs in nats. An
implicit reward is beta times the log-ratio of policy and reference (Rafailov et al. 2023, arXiv 2305.18290, eq. 5).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .losses import Metrics, metric


def dpo(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float = 0.0) -> tuple[Tensor, Metrics]:
    """Sum of -(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d), d the difference of the summed log-ratios.

    ``chosen`` and ``rejected`` are policy minus reference, summed over tokens. Rafailov et al. 2023, arXiv 2305.18290,
    eq. 7; ``label_smoothing`` e for answers flipped with that probability: conservative DPO, Mitchell 2023.
    """
    logits = beta * (chosen - rejected)
    loss = -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)
    return loss.sum(), _metrics("dpo", loss, beta * chosen, beta * rejected)


def ipo(chosen: Tensor, rejected: Tensor, beta: float) -> tuple[Tensor, Metrics]:
    """Sum of (d - 1 / (2 beta))^2, d the difference of the log-ratios averaged over tokens.

    Azar et al. 2023, arXiv 2310.12036, eq. 17, with beta for the paper's tau; the mean over tokens as its authors
    recommend.
    """
    loss = (chosen - rejected - 1 / (2 * beta)).square()
    return loss.sum(), _metrics("ipo", loss, beta * chosen, beta * rejected)


def simpo(chosen: Tensor, rejected: Tensor, beta: float, margin: float) -> tuple[Tensor, Metrics]:
    """Sum of -log sigmoid(beta (chosen - rejected) - margin): log-probs averaged over tokens, no reference.

    Meng et al. 2024, arXiv 2405.14734, eq. 6; ``margin`` is the paper's gamma.
    """
    loss = -F.logsigmoid(beta * (chosen - rejected) - margin)
    return loss.sum(), _metrics("simpo", loss, beta * chosen, beta * rejected)


def orpo(chosen: Tensor, rejected: Tensor, beta: float) -> tuple[Tensor, Metrics]:
    """Sum of -chosen - beta log sigmoid(log odds(chosen) - log odds(rejected)), no reference.

    Inputs are log-probs averaged over tokens, below 0; odds(p) = p / (1 - p) of their exponentials, and -chosen is the
    chosen side's cross-entropy. Hong et al. 2024, arXiv 2403.07691, eq. 6 and 7, with beta for the paper's lambda.
    """
    odds = chosen - rejected - (log1mexp(chosen) - log1mexp(rejected))
    loss = -chosen - beta * F.logsigmoid(odds)
    metrics = _metrics("orpo", loss, beta * chosen, beta * rejected)
    return loss.sum(), metrics | {"loss/cross_entropy": metric(-chosen, torch.ones_like(loss))}


def kto(
    ratio: Tensor, desirable: Tensor, beta: float, reference_point: float, gains: float, losses: float
) -> tuple[Tensor, Metrics]:
    """Sum over rows of gains (1 - sigmoid(beta (r - z))) where desirable (P,) and of losses (1 - sigmoid(beta (z - r)))
    elsewhere.

    ``ratio`` r (P,) is policy minus reference, summed over tokens. ``reference_point`` z, detached and not below 0, is
    the mean of r over prompts with other prompts' responses (:func:`reference_point`). Ethayarajh et al. 2024, arXiv
    2402.01306, eq. 8.
    """
    is_desirable = desirable.bool()
    side = torch.where(is_desirable, ratio - reference_point, reference_point - ratio)
    loss = torch.where(is_desirable, gains, losses) * (1 - torch.sigmoid(beta * side))
    return loss.sum(), {
        "loss/kto": metric(loss, torch.ones_like(loss)),
        "preference/chosen": metric(beta * ratio, is_desirable),
        "preference/rejected": metric(beta * ratio, ~is_desirable),
        "preference/accuracy": metric(side > 0, torch.ones_like(loss)),
    }


def reference_point(ratio: Tensor) -> float:
    """KTO's estimate of KL(policy || reference) in nats: the mean log-ratio of mismatched pairs (P,), not below 0."""
    return max(0.0, float(ratio.mean()))


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, by the form that keeps its digits (Maechler 2012)."""
    x = x.clamp(max=-1e-7)
    return torch.where(x > -0.6931472, torch.log(-torch.expm1(x)), torch.log1p(-x.exp()))


def _metrics(name: str, loss: Tensor, chosen: Tensor, rejected: Tensor) -> Metrics:
    """Loss, implicit rewards of both sides, their margin, and how often the chosen side has the larger."""
    all_pairs = torch.ones_like(loss)
    return {
        f"loss/{name}": metric(loss, all_pairs),
        "preference/chosen": metric(chosen, all_pairs),
        "preference/rejected": metric(rejected, all_pairs),
        "preference/margin": metric(chosen - rejected, all_pairs),
        "preference/accuracy": metric(chosen > rejected, all_pairs),
    }
