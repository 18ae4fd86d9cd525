"""Measures of classifiers, and the weights of their classes."""

import numpy as np
import pytest

from rlhf_ray.quality import classes


def test_classes_against_counts_by_hand():
    truth = ["a", "a", "b", "b", "b", "c"]
    predicted = ["a", "b", "b", "b", "?", "a"]
    measured = classes.classification(truth, predicted, ["a", "b", "c"])
    assert measured["accuracy"] == pytest.approx(3 / 6)
    assert measured["classes"]["b"]["precision"] == pytest.approx(2 / 3)
    assert measured["classes"]["b"]["recall"] == pytest.approx(2 / 3)
    assert measured["classes"]["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "count": 1}
    f1 = {"a": 0.5, "b": 2 / 3, "c": 0.0}
    assert measured["f1_macro"] == pytest.approx(sum(f1.values()) / 3)
    assert measured["recall_micro"] == pytest.approx(3 / 6)
    assert measured["precision_micro"] == pytest.approx(3 / 5)  # '?' is no class
    assert measured["confusion"] == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]


def test_groups_and_their_gap():
    groups = classes.by_group(["x", 1, "x", 1, "y"], np.array([1.0, 0.0, 0.0, 1.0, 1.0]))
    assert groups == {"groups": {"1": 0.5, "x": 0.5, "y": 1.0}, "counts": {"1": 2, "x": 2, "y": 1}, "gap": 0.5}


def test_class_weights_are_those_of_their_papers():
    counts = np.array([90, 10])
    assert classes.weights(counts, "none", 0.9) == [1.0, 1.0]
    balanced = classes.weights(counts, "balanced", 0.9)
    assert balanced == pytest.approx([100 / 180, 5.0])
    effective = classes.weights(counts, "effective", 0.99)
    raw = [(1 - 0.99) / (1 - 0.99**n) for n in counts]
    assert effective[1] / effective[0] == pytest.approx(raw[1] / raw[0])
    assert (np.array(effective) * counts).sum() == pytest.approx(100)
