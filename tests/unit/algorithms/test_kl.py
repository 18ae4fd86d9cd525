"""KL estimators against plain math, and the adaptive coefficient."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algorithms import kl
from rlhf_ray.config.algorithm import KLConfig

KINDS = ("k1", "k2", "k3")
log_prob = st.floats(-20.0, 0.0, width=32)


def naive(kind: str, p: float, q: float) -> float:
    if kind == "k1":
        return p - q
    if kind == "k2":
        return (p - q) ** 2 / 2
    return math.exp(q - p) - 1 - (q - p)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_estimate_is_the_formula_token_by_token(kind, seed):
    generator = torch.Generator().manual_seed(seed)
    p, q = -torch.rand(2, 50, generator=generator, dtype=torch.float64) * 4
    expected = [naive(kind, a, b) for a, b in zip(p.tolist(), q.tolist(), strict=True)]
    assert kl.estimate(kind, p, q).tolist() == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_hand_numbers():
    p, q = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert kl.k1(p, q).item() == pytest.approx(math.log(2))
    assert kl.k2(p, q).item() == pytest.approx(math.log(2) ** 2 / 2)
    assert kl.k3(p, q).item() == pytest.approx(0.5 - 1 + math.log(2))


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_k1_and_k3_are_unbiased_for_kl_of_p_against_q_and_not_the_reverse(kind):
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    truth = (p * (p / q).log()).sum()
    assert (p * kl.estimate(kind, p.log(), q.log())).sum().item() == pytest.approx(truth.item(), rel=1e-5)
    assert truth.item() != pytest.approx((q * (q / p).log()).sum().item(), rel=1e-2)


def test_expected_gradient_on_policy_of_k1_is_zero_and_of_k2_is_that_of_the_kl():
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64).log()
    p = logits.log_softmax(0)

    def expected_gradient(kind):
        return torch.autograd.grad((p.detach().exp() * kl.estimate(kind, p, q)).sum(), logits, retain_graph=True)[0]

    truth = torch.autograd.grad((p.exp() * (p - q)).sum(), logits, retain_graph=True)[0]
    torch.testing.assert_close(expected_gradient("k1"), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(expected_gradient("k2"), truth)
    assert truth.abs().max() > 0.01


@settings(max_examples=200, deadline=None)
@given(log_prob, log_prob)
def test_k2_and_k3_are_never_negative(p, q):
    a, b = torch.tensor(p), torch.tensor(q)
    assert kl.k2(a, b) >= 0
    assert kl.k3(a, b) >= 0


@settings(max_examples=200, deadline=None)
@given(st.floats(-3.0, 0.0, width=32), st.floats(-(2**-10), 2**-10, width=32))
def test_k3_is_never_negative_for_tiny_differences(p, difference):
    a = torch.tensor(p)
    value = kl.k3(a, a + difference)
    assert value >= 0
    assert value <= 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_masked_positions_have_neither_value_nor_gradient(kind):
    p = torch.tensor([-1.0, float("-inf"), -200.0, -2.0], requires_grad=True)
    q = torch.tensor([-1.5, 0.0, 0.0, float("nan")])
    result = kl.estimate(kind, p, q, mask=torch.tensor([1, 0, 0, 0], dtype=torch.uint8))
    result.sum().backward()
    assert result[1:].tolist() == [0.0, 0.0, 0.0]
    assert p.grad[1:].tolist() == [0.0, 0.0, 0.0]
    assert result[0].item() == pytest.approx(naive(kind, -1.0, -1.5))
    assert p.grad[0] != 0


def test_unknown_estimator_is_named():
    with pytest.raises(ValueError, match="k4"):
        kl.estimate("k4", torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        (6.0, 0.1),  # on target: unchanged
        (6.6, 0.1 * (1 + 0.1 * 64 / 10_000)),  # inside the clip: proportional
        (60.0, 0.1 * (1 + 0.2 * 64 / 10_000)),  # far above: clipped
        (0.0, 0.1 * (1 - 0.2 * 64 / 10_000)),  # far below: clipped
    ],
)
def test_adapt_hand_numbers(observed, expected):
    assert kl.adapt(0.1, observed, target=6.0, horizon=10_000, num_samples=64) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_adapt_refuses_a_kl_that_is_not_finite(bad):
    with pytest.raises(ValueError, match="finite"):
        kl.adapt(0.1, bad, 6.0, 10_000, 64)


@pytest.mark.parametrize(("target", "horizon", "samples"), [(0.0, 100, 8), (6.0, 0, 8), (6.0, -1, 8), (6.0, 100, 500)])
def test_adapt_refuses_settings_that_cannot_work(target, horizon, samples):
    with pytest.raises(ValueError, match=r"target|horizon"):
        kl.adapt(0.1, 1.0, target, horizon, samples)


def test_a_controller_moves_its_coefficient_only_if_it_is_adaptive():
    fixed = kl.KLController(KLConfig(coef=0.1))
    assert not fixed.adapts
    fixed.update(12.0, 10)
    assert fixed.coef == 0.1
    adaptive = kl.KLController(KLConfig(coef=0.1, controller={"type": "adaptive", "target": 6.0, "horizon": 100}))
    assert adaptive.adapts
    adaptive.update(12.0, 10)
    assert adaptive.coef == pytest.approx(0.1 * (1 + 0.2 * 10 / 100))
    adaptive.reset()
    assert adaptive.coef == 0.1
