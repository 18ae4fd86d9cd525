"""Losses against naive loops over Python floats, gradients against formulas, and the laws of masked sums."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algorithms import losses

SEEDS = range(5)
OVER = ("tokens", "sequences", "max_tokens")


@dataclass
class Case:
    """A random ragged batch; outside the response the floats are rubbish that must not matter."""

    lengths: torch.Tensor
    mask: torch.Tensor
    new: torch.Tensor
    old: torch.Tensor
    rollout: torch.Tensor
    advantages: torch.Tensor

    def sampled(self):
        start = 0
        for length in self.lengths.tolist():
            yield [i for i in range(start, start + length) if self.mask[i]]
            start += length

    def positions(self):
        return [i for row in self.sampled() for i in row]


def case(seed: int, rows: int = 9, spread: float = 0.4) -> Case:
    generator = torch.Generator().manual_seed(seed)
    masks, lengths = [], []
    for row in range(rows):
        prompt, response = (int(x) for x in torch.randint(0, 7, (2,), generator=generator))
        part = torch.randint(0, 4, (response + 1,), generator=generator) > 0
        if row == 3:
            part = part & False
        masks.append(torch.cat([torch.zeros(prompt, dtype=torch.bool), part]))
        lengths.append(prompt + response + 1)
    mask = torch.cat(masks)

    def floats(scale):
        return torch.randn(len(mask), generator=generator, dtype=torch.float64) * scale

    old = -floats(1.0).abs()
    new, rollout = old + floats(spread), old + floats(spread)
    rubbish = torch.tensor([float("nan"), float("inf"), float("-inf"), 1e4], dtype=torch.float64)
    rubbish = rubbish[torch.randint(0, 4, (len(mask),), generator=generator)]
    tensors = [torch.where(mask, x, rubbish) for x in (new, old, rollout, floats(1.0))]
    return Case(torch.tensor(lengths), mask.to(torch.uint8), *tensors)


def leaf(x: torch.Tensor) -> torch.Tensor:
    return x.clone().requires_grad_()


def clip(x, low, high):
    return min(max(x, low), high)


def surrogate_loss(ratio, advantage, low, high, dual=None):
    objective = min(ratio * advantage, clip(ratio, 1 - low, 1 + high) * advantage)
    if dual is not None and advantage < 0:
        objective = max(objective, dual * advantage)
    return -objective


def sequence_ratios(c: Case) -> dict[int, float]:
    result = {}
    for row in c.sampled():
        if row:
            s = math.exp(sum((c.new[i] - c.old[i]).item() for i in row) / len(row))
            result |= dict.fromkeys(row, s)
    return result


def check_tokens(per_token: torch.Tensor, c: Case, expected: dict[int, float]) -> None:
    full = torch.zeros(len(c.mask), dtype=torch.float64)
    for i, value in expected.items():
        full[i] = value
    torch.testing.assert_close(torch.where(c.mask.bool(), per_token, 0.0), full, rtol=1e-10, atol=1e-12)


# --- sums and what they are divided by --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_aggregate_and_weight_against_loops(seed):
    c = case(seed)
    weights = c.rollout
    rows = [row for row in c.sampled() if row]
    assert len(rows) < len(c.lengths)
    for token_weights in (None, weights):

        def value(i, w=token_weights):
            return c.new[i].item() * (1.0 if w is None else w[i].item())

        tokens = sum(value(i) for row in rows for i in row)
        sequences = sum(sum(value(i) for i in row) / len(row) for row in rows)
        for over, expected in zip(OVER, (tokens, sequences, tokens), strict=True):
            result = losses.aggregate(c.new, c.mask, c.lengths, over, token_weights)
            assert result.item() == pytest.approx(expected, rel=1e-10)
    num_tokens = sum(len(row) for row in rows)
    expected = (num_tokens, len(rows), len(rows) * 20)
    assert tuple(losses.weight(c.mask, c.lengths, over, 20) for over in OVER) == expected


@pytest.mark.parametrize("over", OVER)
def test_an_empty_response_weighs_nothing(over):
    mask, lengths = torch.zeros(5, dtype=torch.uint8), torch.tensor([2, 3])
    assert losses.aggregate(torch.full((5,), float("nan")), mask, lengths, over).item() == 0.0
    assert losses.weight(mask, lengths, over, max_new_tokens=8) == 0.0


def test_aggregation_errors():
    one = torch.ones(1)
    for call in (losses.aggregate, losses.weight):
        with pytest.raises(ValueError, match="unknown aggregation 'rows'"):
            call(*([one] if call is losses.aggregate else []), one, torch.tensor([1]), "rows")
    with pytest.raises(ValueError, match="max_new_tokens"):
        losses.weight(one, torch.tensor([1]), "max_tokens")


@pytest.mark.parametrize("over", OVER)
def test_sums_and_weights_add_over_micro_batches(over):
    c = case(11)
    cut_row, cut = 4, int(c.lengths[:4].sum())
    parts = [(slice(0, cut), slice(0, cut_row)), (slice(cut, None), slice(cut_row, None))]

    def run(tokens, rows):
        mask, lengths = c.mask[tokens], c.lengths[rows]
        loss = losses.gspo(c.new[tokens], c.old[tokens], c.advantages[tokens], mask, lengths, 0.1, 0.2)
        metrics = losses.policy_metrics(
            c.new[tokens], c.old[tokens], c.advantages[tokens], mask, lengths, 0.1, 0.2, sequence_ratio=True
        )
        return losses.aggregate(loss, mask, lengths, over), losses.weight(mask, lengths, over, 20), metrics

    total, halves = run(slice(None), slice(None)), [run(*part) for part in parts]
    torch.testing.assert_close(total[0], halves[0][0] + halves[1][0])
    assert total[1] == halves[0][1] + halves[1][1]
    for key, value in total[2].items():
        first, second = (half[2][key] for half in halves)
        if key.endswith("_max"):
            assert value == max(first, second)
        else:
            torch.testing.assert_close(value[0], first[0] + second[0])
            assert value[1] == first[1] + second[1]


# --- policy objectives ------------------------------------------------------------------------------------------------


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


# --- metrics ----------------------------------------------------------------------------------------------------------


def mean_of(metric):
    return (metric[0] / metric[1]).item()


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


# --- importance weights -----------------------------------------------------------------------------------------------


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


# --- value, entropy, cross-entropy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("limit", [None, 0.2, 0.01])
def test_value_loss_against_a_loop(seed, limit):
    c = case(seed)
    values, old, returns = leaf(c.new), c.old, c.advantages
    expected, clipped, gradient = 0.0, 0, torch.zeros_like(c.new)
    for i in c.positions():
        v, o, r = c.new[i].item(), old[i].item(), returns[i].item()
        plain = (v - r) ** 2
        other = plain if limit is None else (clip(v, o - limit, o + limit) - r) ** 2
        expected += 0.5 * max(plain, other)
        clipped += other > plain
        gradient[i] = v - r if plain >= other else 0.0
    loss, metrics = losses.value_loss(values, old, returns, c.mask, limit)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    assert metrics["value/clip"] == (clipped, len(c.positions()))
    assert metrics["value/loss"][0].item() == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(values.grad, gradient)
    assert limit is None or clipped > 0


def test_value_loss_by_hand():
    loss, metrics = losses.value_loss(
        torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.0]), torch.tensor([2.0, -1.0]), torch.ones(2), clip=0.2
    )
    assert loss.item() == pytest.approx(0.5 * (1.8**2 + 2.0**2))
    assert metrics["value/clip"] == (1, 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_entropy_and_cross_entropy_are_masked_sums(seed):
    c = case(seed)
    total, where = sum(c.new[i].item() for i in c.positions()), c.positions()
    for function, sign, key in (
        (losses.entropy_sum, 1.0, "policy/entropy"),
        (losses.cross_entropy, -1.0, "loss/cross_entropy"),
    ):
        x = leaf(c.new)
        loss, metrics = function(x, c.mask)
        loss.backward()
        assert loss.item() == pytest.approx(sign * total, rel=1e-10)
        assert metrics[key][0].item() == pytest.approx(sign * total, rel=1e-10)
        assert metrics[key][1] == len(where)
        assert x.grad.tolist() == [sign if m else 0.0 for m in c.mask.tolist()]


# --- reward models ----------------------------------------------------------------------------------------------------


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
