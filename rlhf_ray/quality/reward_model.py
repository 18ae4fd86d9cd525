"""How good a reward model is beyond its accuracy: calibration and length bias."""

from __future__ import annotations

import numpy as np
from scipy import special, stats

from ..batch import Batch


def bias_and_calibration(batch: Batch, scores: np.ndarray, paired: bool) -> dict[str, float]:
    """Expected calibration error of P(chosen) or P(label 1), and Spearman's correlation of score and length.

    ``scores`` (B,) in nats of log-odds. Pairs are rows 2i and 2i + 1.
    """
    labels = batch.labels[:, 0]
    if paired:
        chosen, rejected = scores[labels == 1], scores[labels == 0]
        flip = np.arange(len(chosen)) % 2 == 1  # half the pairs seen from the other side, so that both classes occur
        margin = np.where(flip, rejected - chosen, chosen - rejected)
        probability, truth = special.expit(margin), (~flip).astype(float)
    else:
        probability, truth = special.expit(scores), labels
    bias = stats.spearmanr(scores, batch.lengths).statistic if len(set(batch.lengths.tolist())) > 1 else 0.0
    return {
        "reward/calibration_error": calibration_error(probability, truth),
        "reward/length_bias": float(np.nan_to_num(bias)),
    }


def calibration_error(probability: np.ndarray, truth: np.ndarray, num_bins: int = 10) -> float:
    """Mean |accuracy - confidence| over equal-width bins, weighted by their size (Guo et al., 2017; arXiv 1706.04599)."""
    bins = np.minimum((probability * num_bins).astype(int), num_bins - 1)
    total = 0.0
    for b in range(num_bins):
        inside = bins == b
        if inside.any():
            total += inside.mean() * abs(probability[inside].mean() - truth[inside].mean())
    return float(total)
