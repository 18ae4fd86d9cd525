"""Metrics as sums and weights, which add up over micro-batches and learner ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

Sums = dict[str, Any]
"""name -> (sum, weight), whose mean is sum / weight; a name that ends in _max -> one number."""


def merge_sums(parts: Iterable[Mapping[str, Any]]) -> Sums:
    """Adds the sums and the weights of all parts; of names that end in _max, takes the maximum. Returns plain floats.

    Example: {"loss": (3.0, 2)} and {"loss": (1.0, 2)} make {"loss": (4.0, 4.0)}, a mean of 1.
    """
    merged: Sums = {}
    for part in parts:
        for name, value in part.items():
            if name.endswith("_max"):
                merged[name] = max(merged.get(name, -math.inf), float(value))
            else:
                total, weight = merged.get(name, (0.0, 0.0))
                merged[name] = (total + float(value[0]), weight + float(value[1]))
    return merged


def means_of(sums: Mapping[str, Any]) -> dict[str, float]:
    """Each sum over its weight, and the maxima as they are. Names of weight 0 are left out."""
    means = {}
    for name, value in sums.items():
        if name.endswith("_max"):
            means[name] = float(value)
        elif value[1]:
            means[name] = value[0] / value[1]
    return means
