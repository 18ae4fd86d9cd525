"""Measures against known values, naive counts and the libraries they come from."""

import itertools
import math

import numpy as np
import pytest

from rlhf_ray.batch import from_sequences
from rlhf_ray.config import BadInput
from rlhf_ray.quality import classes, intervals, reward_model, text


@pytest.mark.parametrize(
    ("answer", "reference", "match", "f1"),
    [
        ("The  Norman conquest!", ["norman conquest"], 1, 1.0),
        ("in the 10th century", ["10th century", "tenth"], 0, 0.8),
        ("a", ["the"], 1, 1.0),  # nothing but articles: both are empty
        ("a", ["cat"], 0, 0.0),
        ("cat cat dog", ["cat dog dog"], 0, 2 / 3),
    ],
)
def test_squads_measures(answer, reference, match, f1):
    assert text.exact_match(answer, reference) == match
    assert text.token_f1(answer, reference) == pytest.approx(f1)


def test_references_are_read_as_datasets_have_them():
    assert text.references("x") == ["x"]
    assert text.references({"text": ["x", "y"], "answer_start": [1, 2]}) == ["x", "y"]
    assert text.references([1, 2]) == ["1", "2"]
    with pytest.raises(BadInput, match="a reference is None"):
        text.references(None)


def test_bleu_and_chrf_are_sacrebleus():
    metrics = pytest.importorskip("sacrebleu.metrics")
    texts, references = (
        ["the cat sat on the mat", "hello there"],
        [["the cat sat on a mat"], ["hello there", "hi there"]],
    )
    columns = [["the cat sat on a mat", "hello there"], ["the cat sat on a mat", "hi there"]]
    assert text.bleu(texts, references) == pytest.approx(metrics.BLEU().corpus_score(texts, columns).score)
    assert text.chrf(texts, references) == pytest.approx(metrics.CHRF().corpus_score(texts, columns).score)
    assert text.bleu(["我在这里生活"], [["我在这里生活"]], "zh") == pytest.approx(100)
    assert text.sentence_chrf(["abc"], [["abc"]]) == [pytest.approx(1)]


def test_rouge_l_is_the_longest_common_subsequence():
    pytest.importorskip("rouge_score")
    candidate, reference = "police killed the gunman", "police kill the gunman today"
    precision, recall = 3 / 4, 3 / 5
    assert text.rouge_l([candidate], [[reference, "x"]]) == [
        pytest.approx(2 * precision * recall / (precision + recall))
    ]


def test_diversity_counts_n_grams():
    assert text.distinct(["a b a b", "a b"], 2) == 2 / 4
    assert text.repetition("a b c a b c d", 3) == pytest.approx(1 / 5)
    assert text.distinct(["a"], 2) == text.repetition("a b") == 0


@pytest.mark.parametrize(("n", "right", "k"), [(6, 2, 1), (6, 2, 3), (6, 5, 2), (6, 0, 4), (5, 5, 5)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(n, right, k):
    draws = list(itertools.combinations(range(n), k))
    naive = sum(any(i < right for i in draw) for draw in draws) / len(draws)
    assert text.pass_at_k(n, right, k) == pytest.approx(naive)
    with pytest.raises(ValueError, match="needs at least 7"):
        text.pass_at_k(n, right, 7)


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


def test_an_interval_holds_the_mean_as_often_as_it_says():
    draw, hits = np.random.default_rng(1), 0
    for _ in range(60):
        interval = intervals.mean(draw.normal(2.0, 1.0, 80))
        hits += interval.low <= 2.0 <= interval.high
    assert 51 <= hits <= 60
    assert intervals.mean(np.array([3.0, np.nan, 3.0])) == intervals.Estimate(3.0, 3.0, 3.0)
    assert math.isnan(intervals.mean(np.array([np.nan])).mean)


def test_a_tie_is_half_a_win():
    assert intervals.win_rate(np.array([1.0, 2, 3, 0]), np.array([0.0, 2, 4, -1])).mean == pytest.approx(2.5 / 4)
    lost = np.array([np.nan, 2, 3, 0])
    assert intervals.win_rate(lost, np.array([0.0, 2, np.nan, -1])).mean == pytest.approx(1.5 / 2)


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


def test_class_weights_are_those_of_their_papers():
    counts = np.array([90, 10])
    assert classes.weights(counts, "none", 0.9) == [1.0, 1.0]
    balanced = classes.weights(counts, "balanced", 0.9)
    assert balanced == pytest.approx([100 / 180, 5.0])
    effective = classes.weights(counts, "effective", 0.99)
    raw = [(1 - 0.99) / (1 - 0.99**n) for n in counts]
    assert effective[1] / effective[0] == pytest.approx(raw[1] / raw[0])
    assert (np.array(effective) * counts).sum() == pytest.approx(100)
