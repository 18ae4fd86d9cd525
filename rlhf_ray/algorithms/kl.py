"""Per-token KL estimators and the adaptive coefficient.

An estimator compares the distribution p that the tokens were sampled from with another one, q, given only the log-probs
that both assign to the sampled tokens. All are in nats.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ..config.algorithm import AdaptiveKL, KLConfig

Kind = Literal["k1", "k2", "k3"]


def k1(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """log p - log q: unbiased for KL(p||q), of either sign, high variance.

    Both arguments and the result have one shape, float, in nats. As a loss its expected gradient on-policy is zero, so
    it belongs in the reward only. Schulman 2020, "Approximating KL Divergence" (joschu.net/blog/kl-approx.html).
    """
    return log_probs - ref_log_probs


def k2(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """(log p - log q)^2 / 2: biased, never negative; its gradient on-policy is that of the true KL.

    Shapes and source as for `k1`.
    """
    return 0.5 * (log_probs - ref_log_probs).square()


def k3(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """exp(log q - log p) - 1 - (log q - log p): unbiased for KL(p||q) and never negative.

    Shapes and source as for `k1`; the per-token KL of GRPO's loss (Shao et al. 2024, arXiv 2402.03300).
    """
    difference = ref_log_probs - log_probs
    return torch.expm1(difference) - difference  # exp(x) - 1 would go below 0 for tiny differences


_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def estimate(kind: Kind, log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor | None = None) -> Tensor:
    """Per-token estimate of KL(p||q) in nats, by the estimator named `kind`.

    `log_probs` (T,) are p's, `ref_log_probs` (T,) are q's. With `mask` (T,), bool or uint8, the other positions
    count as equal: value and gradient there are exactly 0, whatever they hold. Raises ValueError for an unknown kind.
    """
    if kind not in _ESTIMATORS:
        raise ValueError(f"unknown KL estimator {kind!r}: use one of {', '.join(_ESTIMATORS)}")
    if mask is not None:
        outside = ~mask.bool()
        log_probs, ref_log_probs = log_probs.masked_fill(outside, 0.0), ref_log_probs.masked_fill(outside, 0.0)
    return _ESTIMATORS[kind](log_probs, ref_log_probs)


def adapt(coef: float, observed_kl_per_sequence: float, target: float, horizon: float, num_samples: int) -> float:
    """The next step's KL coefficient: coef * (1 + clip(KL/target - 1, -0.2, 0.2) * num_samples / horizon).

    `observed_kl_per_sequence` and `target` are in nats summed over a sequence (mean over the step's sequences),
    `horizon` in samples. A fixed coefficient is one that is never adapted. Ziegler et al. 2019, arXiv 1909.08593.
    Raises ValueError for a KL that is not finite, a target or horizon that is not positive, and for num_samples of 5
    horizons or more, which could turn the coefficient to zero or below.
    """
    if not math.isfinite(observed_kl_per_sequence):
        raise ValueError(f"the observed KL per sequence is {observed_kl_per_sequence}, not a finite number")
    if target <= 0 or horizon <= 0:
        raise ValueError(f"KL target and horizon must be positive, got {target} and {horizon}")
    if 0.2 * num_samples >= horizon:
        raise ValueError(f"KL horizon {horizon} must exceed a fifth of the step's {num_samples} samples")
    error = min(max(observed_kl_per_sequence / target - 1.0, -0.2), 0.2)
    return coef * (1.0 + error * num_samples / horizon)


class KLController:
    """The KL coefficient of a run, ``coef``: fixed, or moved towards a target KL after each step."""

    def __init__(self, config: KLConfig) -> None:
        self.config = config
        self.reset()

    def reset(self) -> None:
        """The coefficient that a run starts with."""
        self.coef = self.config.coef

    @property
    def adapts(self) -> bool:
        """Whether :meth:`update` can move the coefficient."""
        return isinstance(self.config.controller, AdaptiveKL) and self.coef > 0

    def update(self, kl_per_sequence: float, num_samples: int) -> None:
        """Moves the coefficient after a step, as :func:`adapt` says; a fixed one stays."""
        controller = self.config.controller
        if isinstance(controller, AdaptiveKL):
            self.coef = adapt(self.coef, kl_per_sequence, controller.target, controller.horizon, num_samples)
