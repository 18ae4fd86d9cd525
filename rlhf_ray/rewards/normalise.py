"""Where the reward is normalised: each term's score to its scale, then their weighted sum."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..config import Ensemble, RewardsConfig
from .reward import DROPPED

Scales = dict[str, tuple[float, float]]
"""Mean and standard deviation by the name of the term, for each term that is standardised."""


class RewardScale:
    """From reward parts to total rewards, on a scale that the starting policy's first rollouts freeze.

    ``scales`` is None until it is frozen.
    """

    def __init__(self, rewards: RewardsConfig) -> None:
        self.rewards = rewards
        self.scales: Scales | None = None

    def freeze(self, reward_parts: np.ndarray) -> None:
        """Takes the scales from these reward parts (B, k), unless they are frozen already."""
        if self.scales is None:
            self.scales = measure_scales(reward_parts, self.rewards)

    def total(self, reward_parts: np.ndarray) -> np.ndarray:
        """Rewards (B,) float32 from reward parts (B, k)."""
        return total_reward(reward_parts, self.rewards, self.scales or {})

    def reset(self) -> None:
        """As before the first rollouts."""
        self.scales = None

    def state(self) -> Any:
        """The scales as JSON."""
        return self.scales

    def restore(self, state: Any) -> None:
        """The inverse of :meth:`state`."""
        self.scales = None if state is None else {name: (mean, std) for name, (mean, std) in state.items()}


def without_dropped(parts: np.ndarray) -> np.ndarray:
    """The reward parts (B, k) with NaN for dropped samples too, as metrics and files show them."""
    return np.where(parts == DROPPED, np.float32(np.nan), parts)


def without_any_term(parts: np.ndarray) -> np.ndarray:
    """(B,) bool: samples to which no term applies."""
    return np.asarray(np.isnan(parts).all(1))


def measure_scales(parts: np.ndarray, rewards: RewardsConfig) -> Scales:
    """The scales of the standardised terms' scores in ``parts`` (B, k). A deviation of 0 is taken as 1."""
    scores = without_dropped(parts)
    return {
        term.name: (float(np.nanmean(scores[:, i])), float(np.nanstd(scores[:, i])) or 1.0)
        for i, term in enumerate(rewards.terms)
        if getattr(term, "standardise", False) and not term.scores_steps
    }


def total_reward(parts: np.ndarray, rewards: RewardsConfig, scales: Scales) -> np.ndarray:
    """The weighted sum (B,) float32 of reward parts (B, k). Terms with a scale are standardised first.

    An ensemble counts as one term. A term that does not apply (NaN) adds nothing, so a sample to which none applies has
    0. A dropped part makes the sum NaN. Process rewards are not in the sum: they come at their steps.

        weights 2, 1; parts [1, 3] [NaN, 3] [DROPPED, 3]  ->  5, 3, NaN
    """
    scores = without_dropped(parts)
    total = np.zeros(len(parts), np.float64)
    ensemble_of = {name: i for i, ensemble in enumerate(rewards.ensembles) for name in ensemble.members}
    member_scores: list[list[np.ndarray]] = [[] for _ in rewards.ensembles]
    ensemble_weights = [0.0] * len(rewards.ensembles)
    for i, term in enumerate(rewards.terms):
        if term.scores_steps:
            continue
        mean, deviation = scales.get(term.name, (0.0, 1.0))
        score = (scores[:, i] - mean) / deviation
        if term.name in ensemble_of:
            member_scores[ensemble_of[term.name]].append(score)
            ensemble_weights[ensemble_of[term.name]] = term.weight
        else:
            total += np.where(np.isnan(score), 0.0, term.weight * score)
    for ensemble, weight, columns in zip(rewards.ensembles, ensemble_weights, member_scores, strict=True):
        total += weight * combine_ensemble(np.stack(columns, 1), ensemble)
    counted = [i for i, term in enumerate(rewards.terms) if not term.scores_steps]
    total[(parts[:, counted] == DROPPED).any(1)] = np.nan
    return total.astype(np.float32)


def combine_ensemble(scores: np.ndarray, ensemble: Ensemble) -> np.ndarray:
    """One score (B,) of an ensemble's standardised scores (B, m).

    The mean, the lowest (worst-case optimisation), or the mean less coef times the variance (uncertainty-weighted
    optimisation); Coste et al. 2023, arXiv 2310.02743, section 3.
    """
    if ensemble.combine == "min":
        return scores.min(1)
    mean: np.ndarray = scores.mean(1)
    return mean - ensemble.coef * scores.var(1) if ensemble.combine == "uncertainty" else mean
