"""How good a reward model is beyond its accuracy: calibration, which differences can be trusted, and length bias."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..batch import Batch


def report(batch: Batch, scores: np.ndarray, paired: bool) -> dict[str, Any]:
    """Reliability of P(chosen) or P(label 1), the share right by score difference, and Spearman's correlation of score
    and length.

    ``scores`` (B,) in nats of log-odds. Pairs are rows 2i and 2i + 1. The difference is |chosen - rejected|, without
    pairs the score's distance from 0; where pairs come with different margins, the share right by margin too.
    """
    from scipy import special, stats

    labels = batch.labels[:, 0]
    measures: dict[str, Any] = {}
    if paired:
        chosen, rejected = scores[labels == 1], scores[labels == 0]
        difference, margin = chosen - rejected, batch.labels[labels == 1, 1]
        flip = np.arange(len(chosen)) % 2 == 1  # half the pairs seen from the other side, so that both classes occur
        probability, truth = special.expit(np.where(flip, -difference, difference)), (~flip).astype(float)
        right = difference > 0
        if len(np.unique(margin)) > 1:
            measures["reward/by_margin"] = by_quantile(margin, right)
    else:
        difference, probability, truth = scores, special.expit(scores), labels
        right = (scores > 0) == (labels == 1)
    bias = stats.spearmanr(scores, batch.lengths).statistic if len(set(batch.lengths.tolist())) > 1 else 0.0
    bins = reliability(probability, truth)
    return measures | {
        "reward/calibration_error": calibration_error(bins),
        "reward/length_bias": float(np.nan_to_num(bias)),
        "reward/reliability": bins,
        "reward/by_difference": by_quantile(np.abs(difference), right),
    }


def reliability(probability: np.ndarray, truth: np.ndarray, num_bins: int = 10) -> list[dict[str, float]]:
    """A reliability diagram's bins of equal width that hold predictions (Guo et al., 2017; arXiv 1706.04599).

    ``probability`` (n,) of what ``truth`` (n,) says happened (1) or not (0). Of each bin: low, high, the mean
    confidence, accuracy (the share that happened) and count.
    """
    place = np.minimum((probability * num_bins).astype(int), num_bins - 1)
    return [
        {
            "low": b / num_bins,
            "high": (b + 1) / num_bins,
            "confidence": float(probability[place == b].mean()),
            "accuracy": float(truth[place == b].mean()),
            "count": int((place == b).sum()),
        }
        for b in np.unique(place)
    ]


def calibration_error(bins: list[dict[str, float]]) -> float:
    """Mean |accuracy - confidence| over the bins of :func:`reliability`, weighted by their count (Guo et al., 2017)."""
    total = sum(b["count"] for b in bins)
    return float(sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / total)


def by_quantile(values: np.ndarray, right: np.ndarray, num_bins: int = 5) -> list[dict[str, float]]:
    """The share ``right`` (n,) in bins that hold about equally many ``values`` (n,); equal values share a bin, so there
    may be fewer.

    Of each bin: low and high (the least and the largest value in it), accuracy and count.
    """
    edges = np.quantile(values, np.arange(1, num_bins) / num_bins)
    place = np.searchsorted(edges, values, side="left")
    return [
        {
            "low": float(values[place == b].min()),
            "high": float(values[place == b].max()),
            "accuracy": float(right[place == b].mean()),
            "count": int((place == b).sum()),
        }
        for b in np.unique(place)
    ]
