"""Losses of reward models: Bradley-Terry, cross-entropy of labels, centring."""

import math

import pytest
import torch

from rlhf_ray.algorithms import losses
from tests.unit.algorithms.helpers import (
    SEEDS,
    leaf,
)


def pairs(seed: int, count: int = 7):
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(2 * count, generator=generator)
    group = torch.arange(-3, count - 3).repeat(2)[order]
    labels = torch.cat([torch.ones(count), torch.zeros(count)])[order]
    scores = torch.randn(2 * count, generator=generator, dtype=torch.float64)
    return scores, labels, group, torch.rand(2 * count, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("seed", SEEDS)
def test_bradley_terry_against_a_loop(seed):
    scores, labels, group, margin = pairs(seed)
    x = leaf(scores)
    expected, right, gaps, gradient = 0.0, 0, 0.0, torch.zeros_like(scores)
    for i in range(len(scores)):
        for j in range(len(scores)):
            if group[i] == group[j] and labels[i] == 1 and labels[j] == 0:
                gap = (scores[i] - scores[j]).item()
                shifted = gap - margin[i].item()
                expected += math.log1p(math.exp(-shifted))
                right += gap > 0
                gaps += gap
                gradient[i], gradient[j] = -1 / (1 + math.exp(shifted)), 1 / (1 + math.exp(shifted))
    loss, metrics = losses.bradley_terry(x, labels, group, margin)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    assert metrics["reward/accuracy"] == (right, 7)
    assert metrics["reward/margin"][0].item() == pytest.approx(gaps, rel=1e-10)
    assert metrics["loss/bradley_terry"][0].item() == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(x.grad, gradient)


def test_bradley_terry_of_equal_scores_is_ln_2_and_not_accurate():
    labels, group = torch.tensor([0, 1, 1, 0]), torch.tensor([5, 5, 6, 6])
    loss, metrics = losses.bradley_terry(torch.zeros(4), labels, group, torch.zeros(4))
    assert loss.item() == pytest.approx(2 * math.log(2))
    assert metrics["reward/accuracy"] == (0, 2)


@pytest.mark.parametrize(
    ("labels", "group", "message"),
    [
        ([1, 0, 1, 0], [1, 1, 2, 3], "group 2 is not"),
        ([1, 1, 1, 0], [1, 1, 2, 2], "group 1 is not"),
        ([1, 0, 1], [1, 1, 2], "group 2 is not"),
        ([1, 0, 0, 1, 0, 0], [1, 1, 1, 2, 2, 2], "group 1 is not"),
        ([1, 0.5, 1, 0], [1, 1, 2, 2], "1 .chosen. or 0"),
        ([[1], [0]], [1, 1], "one shape"),
    ],
)
def test_bradley_terry_refuses_what_is_not_pairs(labels, group, message):
    with pytest.raises(ValueError, match=message):
        losses.bradley_terry(
            torch.zeros(len(group)), torch.tensor(labels), torch.tensor(group), torch.zeros(len(group))
        )


@pytest.mark.parametrize("seed", SEEDS)
def test_binary_cross_entropy_against_a_loop(seed):
    scores, labels, _, soft = pairs(seed)
    for target in (labels, soft):
        expected = sum(
            y * math.log1p(math.exp(-s)) + (1 - y) * math.log1p(math.exp(s))
            for s, y in zip(scores.tolist(), target.tolist(), strict=True)
        )
        right = sum((s > 0) == (y > 0.5) for s, y in zip(scores.tolist(), target.tolist(), strict=True))
        loss, metrics = losses.binary_cross_entropy(scores, target)
        assert loss.item() == pytest.approx(expected, rel=1e-9)
        assert metrics["reward/accuracy"] == (right, len(scores))
        assert metrics["loss/binary_cross_entropy"][0].item() == pytest.approx(expected, rel=1e-9)


def test_binary_cross_entropy_errors():
    with pytest.raises(ValueError, match="shape"):
        losses.binary_cross_entropy(torch.zeros(2), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"0\.\.1"):
        losses.binary_cross_entropy(torch.zeros(2), torch.tensor([0.0, 2.0]))


@pytest.mark.parametrize("seed", SEEDS)
def test_centring_and_squared_error_against_a_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(8, generator=generator, dtype=torch.float64)
    labels, group = torch.tensor([1, 0] * 4), torch.arange(8) // 2
    zero = torch.zeros(8, dtype=torch.float64)
    plain, _ = losses.bradley_terry(scores, labels, group, zero)
    centred, _ = losses.bradley_terry(scores, labels, group, zero, 0.3)
    assert float(centred - plain) == pytest.approx(sum(0.3 * float(a + b) ** 2 for a, b in scores.view(4, 2)))
    targets = torch.randn(8, generator=generator, dtype=torch.float64)
    total, metrics = losses.squared_error(scores, targets)
    assert float(total) == pytest.approx(sum((float(a) - float(b)) ** 2 for a, b in zip(scores, targets, strict=True)))
    assert float(metrics["loss/squared_error"][1]) == 8
    with pytest.raises(ValueError, match="must share one shape"):
        losses.squared_error(scores, targets[:3])
