"""Rewards to advantages against naive loops over Python lists, on ragged batches with holes and empty responses."""

import itertools
import math
import statistics
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algorithms import advantages as adv

SEEDS = range(5)


@dataclass
class Ragged:
    """A random batch: float64, so that the loops agree to many digits."""

    lengths: torch.Tensor
    mask: torch.Tensor
    group: torch.Tensor
    scores: torch.Tensor
    generator: torch.Generator

    def per_token(self) -> torch.Tensor:
        return torch.randn(int(self.lengths.sum()), generator=self.generator, dtype=torch.float64)

    def rows(self):
        """(start, stop) of each sequence in the flat tensors."""
        start = 0
        for length in self.lengths.tolist():
            yield start, start + length
            start += length

    def sampled(self):
        """The flat positions of each sequence's response tokens."""
        return [[i for i in range(start, stop) if self.mask[i]] for start, stop in self.rows()]


def ragged(seed: int, rows: int = 13, mask_dtype: torch.dtype = torch.uint8) -> Ragged:
    generator = torch.Generator().manual_seed(seed)

    def integers(low, high, size):
        return torch.randint(low, high, size, generator=generator)

    prompt, response = integers(0, 5, (rows,)), integers(0, 9, (rows,))
    response[0] = 3
    masks = []
    for row in range(rows):
        part = integers(0, 4, (int(response[row]),)) > 0  # a quarter of the response are holes
        if row == 0:
            part = torch.tensor([True, False, True])
        if row == rows // 2:
            part = part & False
        masks.append(torch.cat([torch.zeros(int(prompt[row]), dtype=torch.bool), part]))
    sizes = [1, 2, 2, 3, rows - 8]
    group = torch.tensor([gid for gid, size in zip([7, -3, 900, 0, 12], sizes, strict=True) for _ in range(size)])
    group = group[torch.randperm(rows, generator=generator)]
    scores = torch.randn(rows, generator=generator, dtype=torch.float64)
    scores[group == 900] = 0.1  # a group without variance
    return Ragged((prompt + response).int(), torch.cat(masks).to(mask_dtype), group, scores, generator)


def members(batch: Ragged, row: int) -> list[int]:
    return [j for j in range(len(batch.group)) if batch.group[j] == batch.group[row]]


def close(tensor, expected):
    torch.testing.assert_close(
        tensor, torch.tensor(expected, dtype=tensor.dtype).reshape(tensor.shape), rtol=1e-9, atol=1e-9
    )


def naive_whiten(values: dict[int, float], size: int) -> list[float]:
    result = [0.0] * size
    if values:
        mean = sum(values.values()) / len(values)
        variance = sum((v - mean) ** 2 for v in values.values()) / len(values)
        for i, v in values.items():
            result[i] = (v - mean) / math.sqrt(variance + 1e-8)
    return result


def naive_gae(rewards, values, sampled, gamma, lam, bootstrap):
    advantages, returns = [0.0] * len(rewards), [0.0] * len(rewards)
    for row, positions in enumerate(sampled):
        for k, start in enumerate(positions):
            total = 0.0  # the definition: a discounted sum of temporal differences, not the recursion
            for steps, i in enumerate(positions[k:]):
                rest = positions[k + steps + 1 :]
                after = values[rest[0]] if rest else bootstrap[row]
                total += (gamma * lam) ** steps * (rewards[i] + gamma * after - values[i])
            advantages[start], returns[start] = total, total + values[start]
    return advantages, returns


# --- ragged helpers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.uint8])
def test_ragged_helpers_against_loops(seed, mask_dtype):
    batch = ragged(seed, mask_dtype=mask_dtype)
    x = batch.per_token()
    assert adv.segment_ids(batch.lengths).tolist() == [
        row for row, (start, stop) in enumerate(batch.rows()) for _ in range(start, stop)
    ]
    close(adv.sequence_sum(x, batch.lengths), [sum(x[start:stop].tolist()) for start, stop in batch.rows()])
    sampled = batch.sampled()
    close(
        adv.sequence_mean(x, batch.mask, batch.lengths),
        [sum(x[i].item() for i in row) / len(row) if row else 0.0 for row in sampled],
    )
    assert adv.last_response_index(batch.mask, batch.lengths).tolist() == [row[-1] if row else -1 for row in sampled]
    expected = [0.0] * len(x)
    for row, positions in enumerate(sampled):
        for i in positions:
            expected[i] = batch.scores[row].item()
    close(adv.to_tokens(batch.scores, batch.mask, batch.lengths), expected)


def test_the_random_batches_hold_the_hard_cases():
    batches = [ragged(seed) for seed in SEEDS]
    holes = [any(b - a > 1 for row in batch.sampled() for a, b in itertools.pairwise(row)) for batch in batches]
    assert all(holes)
    assert all(any(not row for row in batch.sampled()) for batch in batches)
    assert all(sorted(batch.group.tolist()) != batch.group.tolist() for batch in batches)


def test_sequence_sum_counts_a_uint8_mask_beyond_255():
    mask = torch.ones(600, dtype=torch.uint8)
    assert adv.sequence_sum(mask, torch.tensor([300, 0, 300])).tolist() == [300, 0, 300]


def test_sequence_sum_and_mean_pass_gradients():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    mask, lengths = torch.tensor([0, 1, 1, 1]), torch.tensor([3, 1])
    (adv.sequence_mean(x, mask, lengths) * torch.tensor([1.0, 10.0])).sum().backward()
    assert x.grad.tolist() == [0.0, 0.5, 0.5, 10.0]


def test_lengths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="5 tokens"):
        adv.sequence_sum(torch.zeros(4), torch.tensor([2, 3]))
    with pytest.raises(ValueError, match="5 tokens"):
        adv.gae(torch.zeros(4), torch.zeros(4), torch.ones(4), torch.tensor([2, 3]), 1.0, 1.0)


# --- token rewards ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_token_rewards_against_a_loop(seed):
    batch = ragged(seed)
    penalties, step = batch.per_token(), batch.per_token() * batch.mask
    expected = [0.0] * len(step)
    for row, positions in enumerate(batch.sampled()):
        for i in positions:
            expected[i] = step[i].item() - penalties[i].item() + (batch.scores[row].item() if i == positions[-1] else 0)
    close(adv.token_rewards(batch.scores, batch.mask, batch.lengths, penalties, step), expected)


def test_token_rewards_by_hand():
    mask, lengths = torch.tensor([0, 1, 0, 1, 0, 0, 0], dtype=torch.uint8), torch.tensor([5, 2])
    scores = torch.tensor([2.0, 5.0])
    assert adv.token_rewards(scores, mask, lengths).tolist() == [0, 0, 0, 2, 0, 0, 0]
    penalties = torch.full((7,), 0.5)
    assert adv.token_rewards(scores, mask, lengths, penalties).tolist() == [0, -0.5, 0, 1.5, 0, 0, 0]


def test_a_step_reward_that_nothing_would_see_is_refused():
    mask, lengths = torch.tensor([0, 1, 0, 1, 0, 0]), torch.tensor([4, 2])
    scores = torch.zeros(2)
    with pytest.raises(ValueError, match="position 2"):
        adv.token_rewards(scores, mask, lengths, step_rewards=torch.tensor([0.0, 1, 1, 0, 0, 0]))
    # a sequence masked as a whole (truncated, greedy) takes its step rewards with it
    result = adv.token_rewards(scores, mask, lengths, step_rewards=torch.tensor([0.0, 1, 0, 0, 0, 3]))
    assert result.tolist() == [0, 1, 0, 0, 0, 0]


# --- generalised advantage estimation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (0.99, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("with_bootstrap", [False, True])
def test_gae_against_the_definition(seed, gamma, lam, with_bootstrap):
    batch = ragged(seed)
    rewards, values, bootstrap = batch.per_token(), batch.per_token(), torch.zeros_like(batch.scores)
    if with_bootstrap:
        bootstrap = batch.scores * (torch.arange(len(bootstrap)) % 2)
    advantages, returns = adv.gae(
        rewards, values, batch.mask, batch.lengths, gamma, lam, bootstrap if with_bootstrap else None
    )
    expected = naive_gae(rewards.tolist(), values.tolist(), batch.sampled(), gamma, lam, bootstrap.tolist())
    close(advantages, expected[0])
    close(returns, expected[1])


def test_gae_by_hand_steps_over_a_hole():
    # prompt token, sampled, tool output, sampled; rewards and values at the hole must not matter
    rewards, values = torch.tensor([9.0, 0.0, 9.0, 1.0]), torch.tensor([9.0, 0.5, 9.0, 0.25])
    mask, lengths = torch.tensor([0, 1, 0, 1]), torch.tensor([4])
    advantages, returns = adv.gae(rewards, values, mask, lengths, gamma=0.5, lam=0.5)
    last = 1.0 - 0.25
    first = 0.0 + 0.5 * 0.25 - 0.5 + 0.25 * last
    assert advantages.tolist() == [0.0, first, 0.0, last]
    assert returns.tolist() == [0.0, first + 0.5, 0.0, 1.0]
    advantages, _ = adv.gae(rewards, values, mask, lengths, 0.5, 0.5, bootstrap=torch.tensor([2.0]))
    assert advantages[3] == last + 0.5 * 2.0


def test_gae_ignores_what_is_not_finite_outside_the_response_and_gives_no_graph():
    rewards, values = torch.tensor([float("nan"), 1.0]), torch.tensor([float("inf"), 0.5], requires_grad=True)
    advantages, returns = adv.gae(rewards, values, torch.tensor([0, 1]), torch.tensor([2]), 1.0, 0.95)
    assert advantages.tolist() == [0.0, 0.5]
    assert returns.tolist() == [0.0, 1.0]
    assert not advantages.requires_grad
    assert not returns.requires_grad


@pytest.mark.parametrize("lengths", [[], [0, 0], [2, 0, 1]])
def test_nothing_sampled_gives_zeros(lengths):
    lengths = torch.tensor(lengths, dtype=torch.int64)
    size, scores = int(lengths.sum()), torch.ones(len(lengths))
    mask, zeros = torch.zeros(size, dtype=torch.uint8), [0.0] * size
    assert adv.gae(torch.ones(size), torch.ones(size), mask, lengths, 1.0, 0.9)[1].tolist() == zeros
    assert adv.token_rewards(scores, mask, lengths).tolist() == zeros
    assert adv.reinforce_plus_plus(torch.ones(size), mask, lengths).tolist() == zeros
    assert adv.to_tokens(scores, mask, lengths).tolist() == zeros
    assert adv.last_response_index(mask, lengths).tolist() == [-1] * len(lengths)
    assert adv.grpo(scores, torch.zeros(len(lengths), dtype=torch.int64)).tolist() == [0.0] * len(lengths)


# --- whitening --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_whiten_against_a_loop(seed):
    batch = ragged(seed)
    x = batch.per_token() * 3 + 5
    kept = {i: x[i].item() for row in batch.sampled() for i in row}
    result = adv.whiten(x, batch.mask)
    close(result, naive_whiten(kept, len(x)))
    inside = result[batch.mask.bool()]
    assert inside.mean().item() == pytest.approx(0.0, abs=1e-9)
    assert inside.std(correction=0).item() == pytest.approx(1.0, abs=1e-6)


def test_whiten_of_equal_values_is_exactly_zero_and_ignores_the_rest():
    x = torch.tensor([0.1, float("nan"), 0.1, 0.1])
    assert adv.whiten(x, torch.tensor([1, 0, 1, 1])).tolist() == [0.0, 0.0, 0.0, 0.0]
    by_hand = adv.whiten(torch.tensor([1.0, 100.0, 3.0]), torch.tensor([True, False, True]))
    assert by_hand.tolist() == pytest.approx([-1.0, 0.0, 1.0])


# --- groups -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_group_statistics_against_loops(seed):
    batch = ragged(seed)
    scores = batch.scores.tolist()
    groups = [[scores[j] for j in members(batch, i)] for i in range(len(scores))]
    means = [sum(g) / len(g) for g in groups]
    stds = [statistics.stdev(g) if len(g) > 1 else 0.0 for g in groups]
    varies = [len(set(g)) > 1 for g in groups]
    mean, std = adv.group_mean_std(batch.scores, batch.group)
    close(mean, means)
    close(std, stds)
    assert adv.group_sizes(batch.group).tolist() == [len(g) for g in groups]
    assert adv.keep_groups(batch.scores, batch.group).tolist() == varies
    centred = [s - m if v else 0.0 for s, m, v in zip(scores, means, varies, strict=True)]
    close(adv.grpo(batch.scores, batch.group), [c / (s + 1e-4) for c, s in zip(centred, stds, strict=True)])
    close(adv.grpo(batch.scores, batch.group, scale=False), centred)
    others = [[scores[j] for j in members(batch, i) if j != i] for i in range(len(scores))]
    close(
        adv.rloo(batch.scores, batch.group),
        [s - sum(o) / len(o) if o else 0.0 for s, o in zip(scores, others, strict=True)],
    )


def test_group_advantages_by_hand():
    scores, group = torch.tensor([1.0, 5.0, 3.0, 2.0, 5.0]), torch.tensor([8, 2, 8, 8, 2])
    assert adv.grpo(scores, group).tolist() == pytest.approx([-1 / 1.0001, 0, 1 / 1.0001, 0, 0], abs=1e-6)
    assert adv.grpo(scores, group, scale=False).tolist() == [-1.0, 0.0, 1.0, 0.0, 0.0]
    assert adv.rloo(scores, group).tolist() == [-1.5, 0.0, 1.5, 0.0, 0.0]
    assert adv.keep_groups(scores, group).tolist() == [True, False, True, True, False]


@pytest.mark.parametrize("value", [0.1, 0.3, 1e6 + 0.1, -7.7])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rewards_give_exactly_zero(value, size, dtype):
    # the mean of seven 0.1 need not be 0.1, and 1e-17 / (1e-17 + 1e-4) is not 0
    scores, group = torch.full((size,), value, dtype=dtype), torch.zeros(size, dtype=torch.int64)
    assert adv.whiten(scores, torch.ones(size)).tolist() == [0.0] * size
    assert not adv.keep_groups(scores, group).any()
    for result in (adv.grpo(scores, group), adv.grpo(scores, group, scale=False), adv.rloo(scores, group)):
        assert result.tolist() == [0.0] * size


def test_a_reward_that_is_not_a_number_stays_visible():
    result = adv.grpo(torch.tensor([1.0, float("nan"), 1.0, 2.0]), torch.tensor([0, 0, 1, 1]))
    assert result[:2].isnan().all()
    assert result[2:].isfinite().all()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(-100, 100))
def test_group_advantages_do_not_feel_a_shift_of_the_reward(seed, shift):
    batch = ragged(seed)
    for function in (adv.grpo, adv.rloo, lambda s, g: adv.grpo(s, g, scale=False)):
        torch.testing.assert_close(
            function(batch.scores + shift, batch.group), function(batch.scores, batch.group), rtol=1e-7, atol=1e-7
        )


@pytest.mark.parametrize("seed", SEEDS)
def test_remax_against_a_loop(seed):
    batch = ragged(seed)
    first = [members(batch, i)[0] for i in range(len(batch.group))]
    greedy = torch.tensor([i == first[i] for i in range(len(first))])
    scores = batch.scores.tolist()
    close(adv.remax(batch.scores, batch.group, greedy), [s - scores[first[i]] for i, s in enumerate(scores)])


def test_remax_refuses_groups_without_exactly_one_greedy_sample():
    scores, group = torch.tensor([1.0, 2.0, 3.0, 5.0]), torch.tensor([4, 9, 4, 9])
    assert adv.remax(scores, group, torch.tensor([1, 1, 0, 0], dtype=torch.uint8)).tolist() == [0.0, 0.0, 2.0, 3.0]
    for wrong in ([True, False, False, False], [True, True, False, True]):
        with pytest.raises(ValueError, match="group 9"):
            adv.remax(scores, group, torch.tensor(wrong))


# --- REINFORCE++ ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_reinforce_plus_plus_against_a_loop(seed, gamma):
    batch = ragged(seed)
    rewards = batch.per_token()
    to_go = {
        start: sum(gamma**steps * rewards[i].item() for steps, i in enumerate(positions[k:]))
        for positions in batch.sampled()
        for k, start in enumerate(positions)
    }
    close(adv.reinforce_plus_plus(rewards, batch.mask, batch.lengths, gamma), naive_whiten(to_go, len(rewards)))
    close(adv.reinforce(rewards, batch.mask, batch.lengths, gamma), [to_go.get(i, 0.0) for i in range(len(rewards))])


@pytest.mark.parametrize("seed", SEEDS)
def test_reinforce_plus_plus_baseline_against_a_loop(seed):
    batch = ragged(seed)
    centred = {}
    for row, positions in enumerate(batch.sampled()):
        peers = [batch.scores[j].item() for j in members(batch, row)]
        centred |= {i: batch.scores[row].item() - sum(peers) / len(peers) for i in positions}
    close(
        adv.reinforce_plus_plus_baseline(batch.scores, batch.group, batch.mask, batch.lengths),
        naive_whiten(centred, len(batch.mask)),
    )


# --- row order --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_row_order_changes_nothing(seed):
    batch = ragged(seed)
    rewards, values = batch.per_token().float(), batch.per_token().float()
    scores = batch.scores.float()
    order = torch.randperm(len(scores), generator=batch.generator)
    spans = list(batch.rows())
    tokens = torch.cat([torch.arange(*spans[row]) for row in order.tolist()])

    def everything(scores, group, lengths, mask, rewards, values):
        per_row = [adv.grpo(scores, group), adv.rloo(scores, group), adv.keep_groups(scores, group)]
        per_token = [
            adv.token_rewards(scores, mask, lengths, rewards),
            *adv.gae(rewards, values, mask, lengths, 1.0, 0.95, scores),
            adv.reinforce_plus_plus(rewards, mask, lengths),
            adv.reinforce_plus_plus_baseline(scores, group, mask, lengths),
        ]
        return per_row, per_token

    before = everything(scores, batch.group, batch.lengths, batch.mask, rewards, values)
    after = everything(
        scores[order], batch.group[order], batch.lengths[order], batch.mask[tokens], rewards[tokens], values[tokens]
    )
    for index, old, new in [(order, *p) for p in zip(before[0], after[0], strict=True)] + [
        (tokens, *p) for p in zip(before[1], after[1], strict=True)
    ]:
        torch.testing.assert_close(new, old[index], rtol=1e-6, atol=1e-7)


# --- shaping and diagnostics ------------------------------------------------------------------------------------------


def test_overlong_penalty_by_hand_and_against_the_paper():
    lengths = torch.tensor([0, 80, 90, 100, 101])
    assert adv.overlong_penalty(lengths, 100, 20, coef=2.0).tolist() == [0.0, 0.0, -1.0, -2.0, -2.0]
    for length in range(0, 40):
        free = 30 - 12
        paper = 0.0 if length <= free else (free - length) / 12 if length <= 30 else -1.0
        assert adv.overlong_penalty(torch.tensor([length]), 30, 12).item() == pytest.approx(paper)


@pytest.mark.parametrize("buffer", [0, -1, 101])
def test_overlong_buffer_out_of_range_is_refused(buffer):
    with pytest.raises(ValueError, match="buffer"):
        adv.overlong_penalty(torch.tensor([1]), 100, buffer)


def test_explained_variance():
    returns, mask = torch.tensor([1.0, 2.0, 3.0, 50.0]), torch.tensor([1, 1, 1, 0])
    assert adv.explained_variance(returns, returns, mask) == 1.0
    assert adv.explained_variance(returns + 7, returns, mask) == 1.0
    assert adv.explained_variance(torch.zeros(4), returns, mask) == pytest.approx(0.0)
    assert adv.explained_variance(-returns, returns, mask) == pytest.approx(-3.0)
    assert math.isnan(adv.explained_variance(returns, torch.ones(4), mask))
    assert math.isnan(adv.explained_variance(returns, returns, torch.tensor([1, 0, 0, 0])))
    assert math.isnan(adv.explained_variance(returns, returns, torch.zeros(4)))
