"""Losses against naive loops over Python floats: sums, weights, values and cross-entropy."""

import pytest
import torch

from rlhf_ray.algorithms import losses
from tests.unit.algorithms.helpers import OVER, SEEDS, case, clip, leaf


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
