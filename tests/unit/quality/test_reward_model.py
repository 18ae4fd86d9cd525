"""Reports on reward models: calibration, pairs and labels."""

import math

import numpy as np
import pytest

from rlhf_ray.batch import from_sequences
from rlhf_ray.quality import reward_model


def test_reliability_is_a_count_in_each_bin():
    draw = np.random.default_rng(0)
    probability = np.r_[draw.random(57), 0.0, 1.0, 0.3]
    truth = (draw.random(60) < probability).astype(float)
    bins = reward_model.reliability(probability, truth, 4)
    error = 0.0
    for b in bins:
        last = b["high"] == 1.0
        inside = [i for i, p in enumerate(probability) if b["low"] <= p and (p < b["high"] or last)]
        assert b["count"] == len(inside) > 0
        assert b["confidence"] == pytest.approx(sum(probability[i] for i in inside) / len(inside))
        assert b["accuracy"] == pytest.approx(sum(truth[i] for i in inside) / len(inside))
        error += len(inside) / 60 * abs(b["accuracy"] - b["confidence"])
    assert sum(b["count"] for b in bins) == 60
    assert reward_model.calibration_error(bins) == pytest.approx(error)
    assert [b["low"] for b in reward_model.reliability(np.array([0.05, 0.95]), np.ones(2))] == [0.0, 0.9]


def test_equal_values_share_a_bin():
    values, right = np.array([0.0, 3, 1, 1, 2, 1, 1, 5, 4, 1]), np.array([0, 1, 0, 1, 1, 0, 1, 1, 1, 0])
    bins = reward_model.by_quantile(values, right, 3)
    assert [(b["low"], b["high"], b["count"]) for b in bins] == [(0, 1, 6), (2, 2, 1), (3, 5, 3)]
    for b in bins:
        inside = [r for v, r in zip(values, right, strict=True) if b["low"] <= v <= b["high"]]
        assert b["accuracy"] == pytest.approx(sum(inside) / len(inside))
    assert [b["count"] for b in reward_model.by_quantile(np.arange(10.0), np.ones(10))] == [2] * 5


def test_a_reward_models_report_is_of_its_pairs():
    draw, size = np.random.default_rng(3), 24
    order = draw.random(size) < 0.5  # whether the chosen side comes first: the order of a pair says nothing
    side = np.stack([order, ~order], 1).reshape(-1).astype(float)
    margin = np.repeat(draw.integers(1, 4, size), 2)
    scores, lengths = draw.normal(size=2 * size), draw.integers(2, 9, 2 * size)
    batch = from_sequences([np.zeros(n) for n in lengths], labels=np.stack([side, margin], 1))
    report = reward_model.report(batch, scores, paired=True)
    gaps = [(scores[2 * i] - scores[2 * i + 1]) * (1 if order[i] else -1) for i in range(size)]
    for key, place in (("reward/by_difference", np.abs(gaps)), ("reward/by_margin", margin[::2])):
        assert sum(b["count"] for b in report[key]) == size
        for b in report[key]:
            inside = [g > 0 for g, v in zip(gaps, place, strict=True) if b["low"] <= v <= b["high"]]
            assert (len(inside), sum(inside) / len(inside)) == (b["count"], pytest.approx(b["accuracy"]))
    chances = [1 / (1 + math.exp(g if i % 2 else -g)) for i, g in enumerate(gaps)]
    assert sum(b["count"] * b["confidence"] for b in report["reward/reliability"]) == pytest.approx(sum(chances))
    assert sum(b["count"] * b["accuracy"] for b in report["reward/reliability"]) == pytest.approx(size / 2)
    even = batch.replace(labels=np.stack([side, np.zeros(2 * size)], 1))
    assert "reward/by_margin" not in reward_model.report(even, scores, paired=True)


def test_without_pairs_a_score_is_right_on_its_labels_side_of_zero():
    scores, labels = np.array([2.0, -1.0, 0.5, -3.0]), np.array([[1.0], [1.0], [0.0], [0.0]])
    batch = from_sequences([[1], [1, 2], [1], [1]], labels=labels)
    report = reward_model.report(batch, scores, paired=False)
    assert [b["accuracy"] for b in report["reward/by_difference"]] == [0.0, 0.0, 1.0, 1.0]
    assert [b["low"] for b in report["reward/by_difference"]] == [0.5, 1.0, 2.0, 3.0]
