"""From rewards to advantages, on ragged flat batches.

B sequences (prompt and response) lie end to end: a per-token tensor has shape (T,), T the sum of `lengths` (B,).
`response_mask` (T,), bool or uint8, is 1 where the policy sampled; a response may have holes (tool output) or be empty.
A per-sequence tensor has shape (B,). `group` (B,) holds arbitrary integers, equal for samples of one prompt, in
any order. Advantages are detached data; sums over groups and steps run in float64 so that the order of the rows
leaves hardly a trace. Functions that take `lengths` raise ValueError when they do not add up to the tokens given.
"""

from __future__ import annotations

import torch
from torch import Tensor


def segment_ids(lengths: Tensor) -> Tensor:
    """The row that each token belongs to: (T,) int64 from `lengths` (B,) integers, zero allowed."""
    return torch.repeat_interleave(torch.arange(lengths.numel(), device=lengths.device), lengths.long())


def _rows(per_token: Tensor, lengths: Tensor) -> Tensor:
    """`segment_ids`, after checking that `lengths` describe `per_token`."""
    rows = segment_ids(lengths)
    if per_token.shape != rows.shape:
        raise ValueError(
            f"lengths add up to {rows.numel()} tokens, the per-token tensor has shape {tuple(per_token.shape)}"
        )
    return rows


def sequence_sum(per_token: Tensor, lengths: Tensor) -> Tensor:
    """Sum over the tokens of each sequence: (T,) -> (B,), differentiable; bool and integers are counted in int64."""
    values = per_token if per_token.is_floating_point() else per_token.long()
    return values.new_zeros(lengths.numel()).index_add(0, _rows(per_token, lengths), values)


def sequence_mean(per_token: Tensor, response_mask: Tensor, lengths: Tensor) -> Tensor:
    """Mean over the response tokens of each sequence: (T,) -> (B,), differentiable; 0 for an empty response."""
    mask = response_mask.bool()
    return sequence_sum(per_token.masked_fill(~mask, 0.0), lengths) / sequence_sum(mask, lengths).clamp(min=1)


def to_tokens(per_sequence: Tensor, response_mask: Tensor, lengths: Tensor) -> Tensor:
    """Give each response token its sequence's value: (B,) -> (T,), differentiable; 0 at all other tokens."""
    return per_sequence[_rows(response_mask, lengths)].masked_fill(~response_mask.bool(), 0)


def last_response_index(response_mask: Tensor, lengths: Tensor) -> Tensor:
    """Flat index into (T,) of each sequence's last response token: (B,) int64, -1 for an empty response."""
    position = torch.arange(response_mask.numel(), device=response_mask.device)
    position = position.masked_fill(~response_mask.bool(), -1)
    start = position.new_full((lengths.numel(),), -1)
    return start.scatter_reduce(0, _rows(response_mask, lengths), position, reduce="amax")


@torch.no_grad()
def token_rewards(
    scores: Tensor,
    response_mask: Tensor,
    lengths: Tensor,
    penalties: Tensor | None = None,
    step_rewards: Tensor | None = None,
) -> Tensor:
    """Per-token rewards (T,): the score (B,) on the last response token, step rewards added, penalties subtracted.

    `penalties` (T,) is kl_coef * k1, old policy against reference, in reward units, and counts at response tokens only.
    `step_rewards` (T,) is a process reward. Other tokens get 0, so the score of an empty response is not used.
    Ouyang et al. 2022, arXiv 2203.02155 (KL in the reward). Raises ValueError where a step reward lies on a token that
    the policy did not sample, in a sequence with a response: nothing would ever see it.
    """
    mask = response_mask.bool()
    last = last_response_index(mask, lengths)
    rewards = scores.new_zeros(mask.shape)
    if step_rewards is not None:
        unseen = (step_rewards != 0) & ~mask & (last >= 0)[_rows(mask, lengths)]
        if unseen.any():
            where = int(unseen.nonzero()[0])
            raise ValueError(f"step_rewards has a reward at flat position {where}, a token the policy did not sample")
        rewards = rewards + step_rewards.masked_fill(~mask, 0.0)
    if penalties is not None:
        rewards = rewards - penalties.masked_fill(~mask, 0.0)
    some = last >= 0
    rewards[last[some]] += scores[some].to(rewards.dtype)
    return rewards


@torch.no_grad()
def gae(
    rewards: Tensor,
    values: Tensor,
    response_mask: Tensor,
    lengths: Tensor,
    gamma: float,
    lam: float,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: (advantages, returns), both (T,), 0 outside the response.

    With t+1 the next *sampled* token: delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lam A_{t+1},
    return_t = A_t + V_t. `rewards` and `values` are (T,) floats; tokens in holes are stepped over, neither discounting
    nor contributing. The value after the last response token is 0, or `bootstrap` (B,) where given.
    Schulman et al. 2015, arXiv 1506.02438.
    """
    mask = response_mask.bool()
    sampled = mask.nonzero().squeeze(1)
    row = _rows(mask, lengths)[sampled]
    count = sequence_sum(mask, lengths)
    width = int(count.max()) if sampled.numel() else 0
    # responses without their holes, right-aligned: every row ends in the last column, so the loop needs no mask
    column = torch.arange(sampled.numel(), device=mask.device) - count.cumsum(0)[row] + width
    dtype = torch.promote_types(values.dtype, torch.float32)
    padded_rewards, padded_values = torch.zeros(2, lengths.numel(), width, dtype=dtype, device=values.device)
    padded_rewards[row, column] = rewards[sampled].to(dtype)
    padded_values[row, column] = values[sampled].to(dtype)
    padded = torch.zeros_like(padded_values)
    next_value = torch.zeros_like(count, dtype=dtype) if bootstrap is None else bootstrap.to(dtype)
    advantage = torch.zeros_like(next_value)
    for t in range(width - 1, -1, -1):
        delta = padded_rewards[:, t] + gamma * next_value - padded_values[:, t]
        advantage = delta + gamma * lam * advantage
        padded[:, t] = advantage
        next_value = padded_values[:, t]
    advantages, returns = torch.zeros(2, mask.numel(), dtype=dtype, device=values.device)
    advantages[sampled] = padded[row, column]
    returns[sampled] = advantages[sampled] + values[sampled].to(dtype)
    return advantages, returns


@torch.no_grad()
def whiten(x: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """(x - mean) / sqrt(var + eps) with one mean and (population) variance over the masked entries; 0 elsewhere.

    `x` and `mask` (bool or uint8) have one shape. Entries that are all equal become exactly 0.
    """
    keep = mask.bool()
    chosen = x[keep].double()
    result = torch.zeros_like(x)
    if chosen.numel() and chosen.min() != chosen.max():
        centred = chosen - chosen.mean()
        result[keep] = (centred / (centred.square().mean() + eps).sqrt()).to(x.dtype)
    return result


def group_sizes(group: Tensor) -> Tensor:
    """How many rows share each row's group: (B,) int64."""
    unique, inverse = torch.unique(group, return_inverse=True)
    return torch.bincount(inverse, minlength=unique.numel())[inverse]


def _group_sum(per_sequence: Tensor, group: Tensor) -> Tensor:
    """The sum over each row's group, on every row: (B,) float64."""
    unique, inverse = torch.unique(group, return_inverse=True)
    sums = torch.zeros(unique.numel(), dtype=torch.float64, device=group.device)
    return sums.index_add(0, inverse, per_sequence.double())[inverse]


def _differs(scores: Tensor, group: Tensor) -> Tensor:
    """(B,) bool: whether the scores of the row's group are not all equal; exact, where a computed std would round."""
    unique, inverse = torch.unique(group, return_inverse=True)
    start = scores.new_zeros(unique.numel())
    high = start.scatter_reduce(0, inverse, scores, reduce="amax", include_self=False)
    low = start.scatter_reduce(0, inverse, scores, reduce="amin", include_self=False)
    return (high != low)[inverse]


@torch.no_grad()
def group_mean_std(scores: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (n - 1) of each row's group, on every row: two (B,) in the dtype of `scores` (B,).

    The standard deviation of a group of one is 0.
    """
    size = group_sizes(group)
    mean = _group_sum(scores, group) / size
    variance = _group_sum((scores.double() - mean).square(), group) / (size - 1).clamp(min=1)
    return mean.to(scores.dtype), variance.sqrt().to(scores.dtype)


@torch.no_grad()
def grpo(scores: Tensor, group: Tensor, scale: bool = True, eps: float = 1e-4) -> Tensor:
    """Group-relative advantages (B,): (r - mean) / (std + eps), std with n - 1, over the rows of the same group.

    Exactly 0 where all scores of a group are equal, a group of one included. Shao et al. 2024, arXiv 2402.03300.
    `scale=False` keeps r - mean: Dr. GRPO, Liu et al. 2025, arXiv 2503.20783.
    """
    mean, std = group_mean_std(scores.double(), group)
    centred = scores.double() - mean
    advantages = centred / (std + eps) if scale else centred
    return advantages.masked_fill(~_differs(scores, group), 0.0).to(scores.dtype)


@torch.no_grad()
def rloo(scores: Tensor, group: Tensor) -> Tensor:
    """Leave-one-out advantages (B,): r_i minus the mean of the other scores of the group.

    The caller subtracts the sequence's summed KL penalty from `scores` (B,) first. Exactly 0 where a group's scores are
    equal; a group of one has no baseline and gets 0. Ahmadian et al. 2024, arXiv 2402.14740.
    """
    others = (_group_sum(scores, group) - scores.double()) / (group_sizes(group) - 1).clamp(min=1)
    return (scores.double() - others).masked_fill(~_differs(scores, group), 0.0).to(scores.dtype)


@torch.no_grad()
def reinforce(rewards: Tensor, response_mask: Tensor, lengths: Tensor, gamma: float = 1.0) -> Tensor:
    """Return-to-go of the per-token rewards (T,), as it is: (T,), 0 elsewhere.

    `rewards` come from `token_rewards`, KL penalty included; holes are stepped over as in `gae`. Williams 1992.
    """
    return gae(rewards, torch.zeros_like(rewards), response_mask, lengths, gamma, 1.0)[0].to(rewards.dtype)


@torch.no_grad()
def reinforce_plus_plus(rewards: Tensor, response_mask: Tensor, lengths: Tensor, gamma: float = 1.0) -> Tensor:
    """Return-to-go of the per-token rewards (T,), whitened over all response tokens given: (T,), 0 elsewhere.

    `rewards` come from `token_rewards`, KL penalty included; holes are stepped over as in `gae`.
    Hu et al. 2025, arXiv 2501.03262.
    """
    return whiten(reinforce(rewards, response_mask, lengths, gamma), response_mask)


@torch.no_grad()
def reinforce_plus_plus_baseline(scores: Tensor, group: Tensor, response_mask: Tensor, lengths: Tensor) -> Tensor:
    """Score minus group mean, given to every response token, whitened over all of them: (B,) -> (T,), 0 elsewhere.

    Hu et al. 2025, arXiv 2501.03262 (REINFORCE++-baseline; its KL goes into the loss as k2).
    """
    return whiten(to_tokens(grpo(scores, group, scale=False), response_mask, lengths), response_mask)


@torch.no_grad()
def best_and_worst(scores: Tensor, group: Tensor) -> Tensor:
    """+1 for the best and -1 for the worst of each group, 0 for the others and where all of a group are equal: (B,).

    Of several equally good (or bad) ones the first counts. For online DPO, Guo et al. 2024, arXiv 2402.04792.
    """
    signs = torch.zeros_like(scores)
    for g in torch.unique(group):
        rows = torch.nonzero(group == g).squeeze(1)
        best, worst = rows[scores[rows].argmax()], rows[scores[rows].argmin()]
        if scores[best] > scores[worst]:
            signs[best], signs[worst] = 1.0, -1.0
    return signs


@torch.no_grad()
def remax(scores: Tensor, group: Tensor, greedy: Tensor) -> Tensor:
    """Advantages (B,): r minus the reward of the group's greedy sample; greedy rows get 0.

    `greedy` (B,) is bool or uint8. Li et al. 2023, arXiv 2310.10505. Raises ValueError unless each group has exactly
    one greedy row.
    """
    chosen = greedy.bool()
    wrong = _group_sum(chosen, group) != 1
    if wrong.any():
        raise ValueError(f"ReMax needs one greedy sample a group; group {int(group[wrong][0])} has none or several")
    baseline = _group_sum(scores.masked_fill(~chosen, 0.0), group)
    return (scores.double() - baseline).to(scores.dtype)


@torch.no_grad()
def overlong_penalty(response_lengths: Tensor, max_new_tokens: int, buffer: int, coef: float = 1.0) -> Tensor:
    """Soft overlong shaping, to be *added* to the score: (B,) float32 from 0 down to -coef.

    -coef * clip((length - (max_new_tokens - buffer)) / buffer, 0, 1): free up to the buffer, linear inside it, full at
    the limit. `response_lengths` (B,), `max_new_tokens` and `buffer` are in tokens.
    DAPO, Yu et al. 2025, arXiv 2503.14476, section 3.4. Raises ValueError unless 0 < buffer <= max_new_tokens.
    """
    if not 0 < buffer <= max_new_tokens:
        raise ValueError(f"the overlong buffer must be in 1..max_new_tokens ({max_new_tokens}), got {buffer}")
    over = (response_lengths.float() - (max_new_tokens - buffer)) / buffer
    return 0.0 - coef * over.clamp(0.0, 1.0)


@torch.no_grad()
def keep_groups(scores: Tensor, group: Tensor) -> Tensor:
    """Dynamic sampling: (B,) bool, true for rows of a group whose scores vary; groups of one never do.

    `scores` (B,) is the task reward before any shaping. DAPO, Yu et al. 2025, arXiv 2503.14476, section 3.2.
    """
    return _differs(scores, group)


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over masked tokens, all (T,): 1 is perfect, 0 no better than a constant.

    NaN where it is not defined: fewer than two tokens, or returns that do not vary.
    """
    keep = mask.bool()
    target, error = returns[keep].double(), (returns[keep] - values[keep]).double()
    if target.numel() == 0 or target.min() == target.max():
        return float("nan")
    return float(1.0 - error.var(correction=0) / target.var(correction=0))
