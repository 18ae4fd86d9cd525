"""Measures of predicted classes (scikit-learn's), and what a measure says of the groups of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def classification(truth: Sequence[Any], predicted: Sequence[Any], classes: Sequence[Any]) -> dict[str, Any]:
    """Accuracy, precision, recall and F1 (macro, micro, per class) and the confusion matrix (rows: truth).

    A prediction outside ``classes`` is wrong and belongs to none: it lowers recall. What is undefined counts as 0.
    """
    from sklearn import metrics

    names = [str(c) for c in classes]
    right, predictions = [str(t) for t in truth], [str(f) for f in predicted]
    result: dict[str, Any] = {"accuracy": float(metrics.accuracy_score(right, predictions)), "count": len(right)}
    for average in ("macro", "micro"):
        p, r, f, _ = metrics.precision_recall_fscore_support(
            right, predictions, labels=names, average=average, zero_division=0
        )
        result |= {f"precision_{average}": float(p), f"recall_{average}": float(r), f"f1_{average}": float(f)}
    p, r, f, n = metrics.precision_recall_fscore_support(right, predictions, labels=names, zero_division=0)
    result["classes"] = {
        c: {"precision": float(p[i]), "recall": float(r[i]), "f1": float(f[i]), "count": int(n[i])}
        for i, c in enumerate(names)
    }
    result["confusion"] = metrics.confusion_matrix(right, predictions, labels=names).tolist()
    return result


def by_group(groups: Sequence[Any], values: np.ndarray) -> dict[str, Any]:
    """The mean and the count of ``values`` (n,) in each group (n names), and the gap between best and worst group."""
    names = np.array([str(g) for g in groups])
    means = {name: float(np.nanmean(values[names == name])) for name in sorted(set(names.tolist()))}
    counts = {name: int((names == name).sum()) for name in means}
    return {"groups": means, "counts": counts, "gap": max(means.values()) - min(means.values())}


def weights(counts: np.ndarray, how: str, beta: float) -> list[float]:
    """Weights (k,) of classes with ``counts`` examples, their mean over the examples 1.

    'balanced': the inverse of a class's share. 'effective': the inverse of its effective number, (1 - beta^n) / (1 -
    beta) (Cui et al. 2019, arXiv 1901.05555). 'none': all 1.
    """
    number = np.asarray(counts, dtype=float)
    if how == "none":
        return [1.0] * len(number)
    plain = 1 / number if how == "balanced" else (1 - beta) / (1 - beta**number)
    return (plain * number.sum() / (plain * number).sum()).tolist()
