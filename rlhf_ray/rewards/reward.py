"""The Reward protocol, checks on what a reward returns, and the weighted sum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ..config import BadInput, Ensemble, RewardsConfig

FLOAT32_MAX = float(np.finfo(np.float32).max)


class RewardError(BadInput):
    """A reward that cannot be had or returned something else than one number a completion."""


class Reward(Protocol):
    """TRL's signature: prompts, completions, every other column of the dataset as a list; one number each comes back.

    A user's function gets completion_ids too (lists of token ids, end token included), and for a prompt that is a list of
    messages a completion of that form: [{"role": "assistant", "content": text}]. TRL's trainer_state, log_extra and
    log_metric belong to its trainer and are not passed. Rules get text, and no completion_ids.
    """

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: list[Any]) -> list[float]: ...


def checked(name: str, where: str, values: Any, example_id: Sequence[int], on_error: str) -> np.ndarray:
    """What a reward returned as (B,) float32; a row that is no finite number is NaN under 'drop'.

    Raises RewardError naming the term, the function, and the row's example_id.
    """
    if not isinstance(values, list | tuple | np.ndarray) or np.ndim(values) == 0:
        raise RewardError(f"reward '{name}' ({where}) returned {type(values).__name__}; return a list of floats")
    if len(values) != len(example_id):
        raise RewardError(
            f"reward '{name}' ({where}) returned {len(values)} values for {len(example_id)} completions; return one each"
        )
    found = np.array([_number(value) for value in values], np.float32)
    wrong = np.flatnonzero(np.isnan(found))
    if len(wrong) and on_error == "fail":
        raise RewardError(
            f"reward '{name}' ({where}) returned {str(values[wrong[0]])[:80]!r} for example {example_id[wrong[0]]}; "
            "return a finite number, or set on_error: drop to leave such samples out"
        )
    return found


def _number(value: Any) -> float:
    """``value`` where it is a number that float32 holds, else NaN."""
    if not isinstance(value, int | float | np.integer | np.floating | np.bool_):
        return math.nan
    return float(value) if abs(float(value)) <= FLOAT32_MAX else math.nan


Scales = dict[str, tuple[float, float]]
"""Mean and deviation of each term that is standardised."""


def scales(parts: np.ndarray, rewards: RewardsConfig) -> Scales:
    """Those of the reward models' scores in ``parts`` (B, k), the starting policy's; 1 stands for a deviation of 0."""
    return {
        t.name: (float(np.nanmean(parts[:, i])), float(np.nanstd(parts[:, i])) or 1.0)
        for i, t in enumerate(rewards.terms)
        if getattr(t, "standardise", False) and getattr(t, "steps", None) is None
    }


def combine(parts: np.ndarray, rewards: RewardsConfig, statistics: Scales) -> np.ndarray:
    """The weighted sum (B,) float32 of parts (B, k), those in ``statistics`` standardised first; an ensemble is one term of it.

    A NaN part (a dropped sample) makes the sum NaN. Process rewards are not in it: they come at their steps.
    """
    total = np.zeros(len(parts), np.float64)
    members = {name: i for i, ensemble in enumerate(rewards.ensembles) for name in ensemble.members}
    scores: list[list[np.ndarray]] = [[] for _ in rewards.ensembles]
    weights = [0.0] * len(rewards.ensembles)
    for i, term in enumerate(rewards.terms):
        if getattr(term, "steps", None) is not None:
            continue
        mean, deviation = statistics.get(term.name, (0.0, 1.0))
        score = (parts[:, i] - mean) / deviation
        if term.name in members:
            scores[members[term.name]].append(score)
            weights[members[term.name]] = term.weight
        else:
            total += term.weight * score
    for ensemble, weight, each in zip(rewards.ensembles, weights, scores, strict=True):
        total += weight * together(np.stack(each, 1), ensemble)
    return total.astype(np.float32)


def together(scores: np.ndarray, ensemble: Ensemble) -> np.ndarray:
    """One score (B,) of an ensemble's standardised scores (B, m): their mean, the lowest (worst-case optimisation), or the mean
    less coef times their variance (uncertainty-weighted optimisation; Coste et al. 2023, arXiv 2310.02743, section 3)."""
    if ensemble.combine == "min":
        return scores.min(1)
    mean: np.ndarray = scores.mean(1)
    return mean - ensemble.coef * scores.var(1) if ensemble.combine == "uncertainty" else mean
