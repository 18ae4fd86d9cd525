"""Policy losses against naive loops, and their gradients against formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algorithms import losses
from tests.unit.algorithms.helpers import (
    OVER,
    SEEDS,
    case,
    check_tokens,
    leaf,
    mean_of,
    sequence_ratios,
    surrogate_loss,
)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("low", "high", "dual"), [(0.2, 0.2, None), (0.2, 0.28, None), (0.2, 0.2, 1.3), (0.1, 0.3, 3)])
def test_clipped_policy_against_a_loop(seed, low, high, dual):
    c = case(seed)
    result = losses.clipped_policy(c.new, c.old, c.advantages, c.mask, low, high, dual)
    check_tokens(
        result,
        c,
        {
            i: surrogate_loss(math.exp(c.new[i] - c.old[i]), c.advantages[i].item(), low, high, dual)
            for i in c.positions()
        },
    )


def test_clipped_policy_by_hand():
    ratio = torch.tensor([1.5, 0.5, 1.5, 0.5, 10.0, 10.0])
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0, 1.0])
    arguments = (ratio.log(), torch.zeros(6), advantages, torch.ones(6))
    assert losses.clipped_policy(*arguments).tolist() == pytest.approx([-1.2, -0.5, 1.5, 0.8, 10.0, -1.2])
    dual = losses.clipped_policy(*arguments, dual_clip=3.0)  # only the runaway ratio with A < 0 changes
    assert dual.tolist() == pytest.approx([-1.2, -0.5, 1.5, 0.8, 3.0, -1.2])
    with pytest.raises(ValueError, match="dual_clip"):
        losses.clipped_policy(*arguments, dual_clip=1.0)


def test_clipped_policy_gradient_is_ratio_times_advantage_or_nothing():
    new = leaf(torch.tensor([1.5, 0.5, 1.5, 0.5, 10.0]).log())
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0])
    losses.clipped_policy(new, torch.zeros(5), advantages, torch.ones(5), dual_clip=3.0).sum().backward()
    assert new.grad.tolist() == pytest.approx([0.0, -0.5, 1.5, 0.0, 0.0])


@pytest.mark.parametrize("seed", SEEDS)
def test_gspo_against_a_loop(seed):
    c = case(seed)
    ratios = sequence_ratios(c)
    result = losses.gspo(c.new, c.old, c.advantages, c.mask, c.lengths, 0.1, 0.2)
    check_tokens(result, c, {i: surrogate_loss(s, c.advantages[i].item(), 0.1, 0.2) for i, s in ratios.items()})


@pytest.mark.parametrize("seed", SEEDS)
def test_gspo_over_sequences_is_the_sum_of_the_sequence_losses_and_its_gradient_flows_through_the_mean(seed):
    c = case(seed)
    new, ratios = leaf(c.new), sequence_ratios(c)
    per_sequence = [0.7, -1.3, 0.4, 9.0, -0.2, 1.1, -0.6, 0.9, -2.0]
    advantages = torch.zeros_like(c.new)
    expected, gradient = 0.0, torch.zeros_like(c.new)
    for a, row in zip(per_sequence, c.sampled(), strict=True):
        if row:
            s = ratios[row[0]]
            expected += surrogate_loss(s, a, 0.1, 0.2)
            active = (a > 0 and s < 1.2) or (a < 0 and s > 0.9)
            for i in row:
                advantages[i], gradient[i] = a, -s * a / len(row) * active
    per_token = losses.gspo(new, c.old, advantages, c.mask, c.lengths, 0.1, 0.2)
    total = losses.aggregate(per_token, c.mask, c.lengths, "sequences")
    total.backward()
    assert total.item() == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(new.grad, gradient)


@pytest.mark.parametrize("seed", SEEDS)
def test_cispo_against_a_loop_and_its_ratio_is_detached(seed):
    c = case(seed)
    new = leaf(c.new)
    result = losses.cispo(new, c.old, c.advantages, c.mask, clip_high=0.2)
    coefficients = {i: min(math.exp(c.new[i] - c.old[i]), 1.2) * c.advantages[i].item() for i in c.positions()}
    assert any(math.exp(c.new[i] - c.old[i]) > 1.2 for i in c.positions())
    check_tokens(result.detach(), c, {i: -k * c.new[i].item() for i, k in coefficients.items()})
    losses.aggregate(result, c.mask, c.lengths).backward()
    check_tokens(new.grad, c, {i: -k for i, k in coefficients.items()})


@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("name", ["clipped", "gspo", "cispo"])
def test_rubbish_outside_the_response_leaves_loss_and_gradient_clean(name, over):
    c = case(7)
    new = leaf(c.new)
    per_token = {
        "clipped": lambda: losses.clipped_policy(new, c.old, c.advantages, c.mask, dual_clip=3.0),
        "gspo": lambda: losses.gspo(new, c.old, c.advantages, c.mask, c.lengths, 0.1, 0.2),
        "cispo": lambda: losses.cispo(new, c.old, c.advantages, c.mask, 0.2),
    }[name]()
    loss = losses.aggregate(per_token, c.mask, c.lengths, over, losses.importance_weights(c.old, c.rollout, c.mask))
    loss.backward()
    assert loss.isfinite()
    assert new.grad.isfinite().all()
    assert (new.grad[~c.mask.bool()] == 0).all()
    assert (new.grad != 0).any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_at_ratio_one_the_loss_is_minus_the_sum_of_advantages_and_all_gradients_agree(seed):
    c = case(seed)
    inside = c.advantages[c.mask.bool()]
    for name in ("clipped", "gspo", "cispo"):
        new = leaf(c.old)
        if name == "clipped":
            per_token = losses.clipped_policy(new, c.old, c.advantages, c.mask, dual_clip=3.0)
        elif name == "gspo":
            per_token = losses.gspo(new, c.old, c.advantages, c.mask, c.lengths)
        else:
            per_token = losses.cispo(new, c.old, c.advantages, c.mask, 0.2)
        loss = losses.aggregate(per_token, c.mask, c.lengths)
        loss.backward()
        if name != "cispo":
            assert loss.item() == pytest.approx(-inside.sum().item(), abs=1e-9)
        if name == "gspo":  # a sequence's gradient is spread evenly over its tokens
            assert new.grad.sum().item() == pytest.approx(-inside.sum().item(), abs=1e-9)
        else:
            torch.testing.assert_close(new.grad[c.mask.bool()], -inside)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("sequence_ratio", [False, True])
def test_policy_metrics_against_loops(seed, sequence_ratio):
    c = case(seed)
    metrics = losses.policy_metrics(
        leaf(c.new), c.old, c.advantages, c.mask, c.lengths, 0.1, 0.2, sequence_ratio=sequence_ratio
    )
    where = c.positions()
    ratio = sequence_ratios(c) if sequence_ratio else {i: math.exp(c.new[i] - c.old[i]) for i in where}
    low = sum(ratio[i] < 0.9 and c.advantages[i].item() < 0 for i in where)
    high = sum(ratio[i] > 1.2 and c.advantages[i].item() > 0 for i in where)
    difference = [(c.new[i] - c.old[i]).item() for i in where]
    assert metrics["policy/clip_low"] == (low, len(where))
    assert metrics["policy/clip_high"] == (high, len(where))
    assert metrics["policy/ratio_max"].item() == pytest.approx(max(ratio.values()), rel=1e-10)
    assert metrics["kl/update"][0].item() == pytest.approx(sum(math.expm1(d) - d for d in difference), rel=1e-10)
    assert metrics["kl/update_k1"][0].item() == pytest.approx(-sum(difference), rel=1e-10)
    flat = [x for value in metrics.values() for x in (value if isinstance(value, tuple) else (value,))]
    assert not any(x.requires_grad for x in flat)
    capped = losses.policy_metrics(c.new, c.old, c.advantages, c.mask, c.lengths, None, 0.2)
    assert capped["policy/clip_low"][0] == 0
    assert capped["policy/clip_high"][0] == sum(math.exp(c.new[i] - c.old[i]) > 1.2 for i in where)


def test_the_counted_clips_are_the_tokens_without_gradient():
    c = case(3, rows=40)
    new = leaf(c.new)
    losses.clipped_policy(new, c.old, c.advantages, c.mask).sum().backward()
    metrics = losses.policy_metrics(c.new, c.old, c.advantages, c.mask, c.lengths, 0.2, 0.2)
    dead = (new.grad[c.mask.bool()] == 0).sum()
    assert dead > 0
    assert metrics["policy/clip_low"][0] + metrics["policy/clip_high"][0] == dead


def test_metrics_of_nothing_are_zero_over_zero():
    empty, mask, lengths = torch.zeros(3), torch.zeros(3, dtype=torch.uint8), torch.tensor([3])
    policy = losses.policy_metrics(empty, empty, empty, mask, lengths, 0.2, 0.2)
    importance = losses.importance_metrics(empty, empty, mask)
    for metrics in (policy, importance):
        assert all(value == ((0, 0) if isinstance(value, tuple) else 0) for value in metrics.values())


@pytest.mark.parametrize("seed", SEEDS)
def test_importance_weights_and_metrics_against_loops(seed):
    c = case(seed, spread=1.0)
    where, raw = c.positions(), {}
    for i in where:
        raw[i] = math.exp(c.old[i] - c.rollout[i])
    weights = {i: min(r, 2.0) for i, r in raw.items()}
    assert any(r > 2 for r in raw.values())
    result = losses.importance_weights(leaf(c.old), leaf(c.rollout), c.mask)
    assert not result.requires_grad
    check_tokens(result, c, weights)
    assert (result[~c.mask.bool()] == 0).all()
    by_sequence = {i: sum(weights[j] for j in row) / len(row) for row in c.sampled() for i in row}
    check_tokens(losses.sequence_importance(result, c.mask, c.lengths), c, by_sequence)
    metrics = losses.importance_metrics(c.old, c.rollout, c.mask)
    assert metrics["importance/capped"] == (sum(r > 2 for r in raw.values()), len(where))
    assert metrics["importance/ratio_max"].item() == pytest.approx(max(raw.values()), rel=1e-10)
    gaps = [(c.old[i] - c.rollout[i]).item() for i in where]
    assert mean_of(metrics["kl/mismatch"]) == pytest.approx(sum(math.expm1(g) - g for g in gaps) / len(gaps), rel=1e-10)
    share = losses.effective_sample_share(
        mean_of(metrics["importance/weight"]), mean_of(metrics["importance/weight_square"])
    )
    total, square = sum(weights.values()), sum(w * w for w in weights.values())
    assert share == pytest.approx(total**2 / square / len(where), rel=1e-10)


def test_effective_sample_share_by_hand():
    assert losses.effective_sample_share(1.0, 1.0) == 1.0
    assert losses.effective_sample_share(0.5, 1.0) == 0.25  # weights 0, 0, 0, 2
    assert losses.effective_sample_share(0.0, 0.0) == 0.0


def test_importance_weights_multiply_the_gradient_and_are_one_for_equal_numerics():
    c = case(2)
    plain, weighted, same = leaf(c.new), leaf(c.new), leaf(c.new)
    weights = losses.importance_weights(c.old, c.rollout, c.mask)
    ones = losses.importance_weights(c.old, c.old, c.mask)
    for new, token_weights in ((plain, None), (weighted, weights), (same, ones)):
        loss = losses.clipped_policy(new, c.old, c.advantages, c.mask)
        losses.aggregate(loss, c.mask, c.lengths, "sequences", token_weights).backward()
    torch.testing.assert_close(weighted.grad, plain.grad * weights)
    torch.testing.assert_close(same.grad, plain.grad)
    with pytest.raises(ValueError, match="cap"):
        losses.importance_weights(c.old, c.rollout, c.mask, cap=0.0)
