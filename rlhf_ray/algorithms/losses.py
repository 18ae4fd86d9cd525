"""Losses as masked SUMS over ragged flat batches, and the metrics that belong to them.

Shapes are those of advantages.py: per-token (T,), per-sequence (B,), masks bool or uint8. A policy objective gives one
loss per token; `aggregate` sums it and `weight` says what that sum is to be divided by, once, over all micro-batches
and ranks. Values outside the mask never matter: they get neither loss nor gradient, even when they are not finite.

A metric is a pair (sum, weight) of detached float64 scalars; pairs are added and divided at the very end. A key
that ends in `_max` holds one scalar instead, combined by maximum.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_ray.algorithms.advantages import sequence_mean, sequence_sum, to_tokens
from rlhf_ray.algorithms.kl import estimate

Over = Literal["tokens", "sequences", "max_tokens"]
Metrics = dict[str, tuple[Tensor, Tensor] | Tensor]


def _inside(x: Tensor, mask: Tensor) -> Tensor:
    """`x` with zeros, and zero gradient, outside the mask."""
    return x.masked_fill(~mask.bool(), 0.0)


def metric(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The metric (sum over the mask, size of the mask)."""
    keep = mask.bool()
    return values.detach()[keep].sum(dtype=torch.float64), keep.sum(dtype=torch.float64)


def aggregate(
    per_token: Tensor,
    response_mask: Tensor,
    lengths: Tensor,
    over: Over = "tokens",
    token_weights: Tensor | None = None,
) -> Tensor:
    """The sum of a per-token loss (T,) that goes with `weight(..., over)`: a scalar.

    "tokens" and "max_tokens" add up response tokens, "sequences" adds up each sequence's mean over its response tokens.
    `token_weights` (T,), such as importance weights, multiply the loss; they do not enter the divisor.
    Raises ValueError for another `over`.
    """
    if over not in ("tokens", "sequences", "max_tokens"):
        raise ValueError(f"unknown aggregation {over!r}: use tokens, sequences or max_tokens")
    loss = _inside(per_token, response_mask)
    if token_weights is not None:
        loss = loss * _inside(token_weights, response_mask)
    return sequence_mean(loss, response_mask, lengths).sum() if over == "sequences" else loss.sum()


def weight(response_mask: Tensor, lengths: Tensor, over: Over = "tokens", max_new_tokens: int | None = None) -> float:
    """What `aggregate(..., over)` is divided by, after both are summed over the whole optimizer step.

    "tokens": response tokens. "sequences": sequences with at least one. "max_tokens": those sequences times
    `max_new_tokens`, a divisor that no response length can move (Dr. GRPO, Liu et al. 2025, arXiv 2503.20783).
    Sequences with an empty response weigh nothing. Raises ValueError for another `over`, or no `max_new_tokens`.
    """
    if over == "tokens":
        return float(response_mask.bool().sum())
    sequences = float((sequence_sum(response_mask, lengths) > 0).sum())
    if over == "sequences":
        return sequences
    if over != "max_tokens":
        raise ValueError(f"unknown aggregation {over!r}: use tokens, sequences or max_tokens")
    if max_new_tokens is None or max_new_tokens <= 0:
        raise ValueError(f"max_tokens needs max_new_tokens > 0, got {max_new_tokens}")
    return sequences * max_new_tokens


def _log_ratio(
    log_probs: Tensor, old_log_probs: Tensor, response_mask: Tensor, lengths: Tensor | None = None
) -> Tensor:
    """log pi - log old per token (T,); with `lengths`, the mean over the sequence's response on each of its tokens."""
    # masked before exp: an overflow outside the response would turn into a NaN gradient
    difference = _inside(log_probs, response_mask) - _inside(old_log_probs, response_mask)
    if lengths is None:
        return difference
    return to_tokens(sequence_mean(difference, response_mask, lengths), response_mask, lengths)


def _clipped(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float | None) -> Tensor:
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages)
    if dual_clip is not None:
        if dual_clip <= 1.0:
            raise ValueError(f"dual_clip must be above 1, got {dual_clip}")
        surrogate = torch.where(advantages < 0, torch.maximum(surrogate, dual_clip * advantages), surrogate)
    return -surrogate


def clipped_policy(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> Tensor:
    """PPO's clipped surrogate per token (T,): -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = exp(log pi - old).

    With `dual_clip` c > 1 the loss is at most -c A where A < 0. Inputs are (T,) floats, log-probs in nats.
    Schulman et al. 2017, arXiv 1707.06347; separate clips: Yu et al. 2025, arXiv 2503.14476; dual clip: Ye et al. 2020,
    arXiv 1912.09729. Raises ValueError for a dual clip of 1 or less.
    """
    ratio = _log_ratio(log_probs, old_log_probs, response_mask).exp()
    return _clipped(ratio, _inside(advantages, response_mask), clip_low, clip_high, dual_clip)


def gspo(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    lengths: Tensor,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> Tensor:
    """The clipped surrogate with one ratio a sequence, s = exp(mean over its response of log pi - old): (T,).

    The sequence's loss -min(s A, clip(s) A) stands on each of its response tokens, so the mean over the sequence gives
    it back: aggregate it over "sequences". The gradient flows through the mean. Zheng et al. 2025, arXiv 2507.18071.
    """
    ratio = _log_ratio(log_probs, old_log_probs, response_mask, lengths).exp()
    return _clipped(ratio, _inside(advantages, response_mask), clip_low, clip_high, None)


def cispo(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, response_mask: Tensor, clip_high: float
) -> Tensor:
    """Clipped importance-sampling REINFORCE per token (T,): -stop_gradient(min(r, 1 + clip_high)) A log pi.

    The gradient reaches every token, also those whose ratio is capped. MiniMax 2025, arXiv 2506.13585.
    """
    ratio = _log_ratio(log_probs, old_log_probs, response_mask).detach().exp().clamp(max=1.0 + clip_high)
    return -ratio * _inside(advantages, response_mask) * _inside(log_probs, response_mask)


@torch.no_grad()
def policy_metrics(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    lengths: Tensor,
    clip_low: float | None,
    clip_high: float,
    sequence_ratio: bool = False,
) -> Metrics:
    """How far the update has moved the policy, over response tokens.

    `policy/clip_low` and `policy/clip_high`: share of tokens whose gradient the clip removes (ratio below with A < 0,
    above with A > 0). `clip_low` None means a cap as in CISPO: high counts any sign, low is 0. `policy/ratio_max`: the
    largest ratio; `sequence_ratio` takes GSPO's. `kl/update` and `kl/update_k1`: KL(old||new) per token by k3 and k1.
    """
    mask = response_mask.bool()
    ratio = _log_ratio(log_probs, old_log_probs, mask, lengths if sequence_ratio else None).exp()
    high = ratio > 1.0 + clip_high
    low = torch.zeros_like(high)
    if clip_low is not None:
        high, low = high & (advantages > 0), (ratio < 1.0 - clip_low) & (advantages < 0)
    inside = ratio[mask]
    return {
        "policy/clip_low": metric(low, mask),
        "policy/clip_high": metric(high, mask),
        "policy/ratio_max": (inside.max() if inside.numel() else inside.new_zeros(())).double(),
        "kl/update": metric(estimate("k3", old_log_probs, log_probs, mask), mask),
        "kl/update_k1": metric(estimate("k1", old_log_probs, log_probs, mask), mask),
    }


@torch.no_grad()
def importance_weights(
    old_log_probs: Tensor, rollout_log_probs: Tensor, response_mask: Tensor, cap: float = 2.0
) -> Tensor:
    """Truncated importance weights per token (T,), detached: min(exp(old - rollout), cap), 0 outside the response.

    They correct for an engine that samples from slightly (or staler) other weights than the learner's; pass them to
    `aggregate` as `token_weights`. Ionides 2008 (truncated importance sampling); Yao et al. 2025, "Your Efficient RL
    Framework Secretly Brings You Off-Policy RL Training". Raises ValueError for a cap that is not positive.
    """
    if cap <= 0:
        raise ValueError(f"the importance cap must be positive, got {cap}")
    return _inside(_log_ratio(old_log_probs, rollout_log_probs, response_mask).exp().clamp(max=cap), response_mask)


@torch.no_grad()
def sequence_importance(weights: Tensor, response_mask: Tensor, lengths: Tensor) -> Tensor:
    """The mean of the token weights (T,) over each response, on each of its tokens: (T,), for GSPO."""
    return to_tokens(sequence_mean(weights, response_mask, lengths), response_mask, lengths)


@torch.no_grad()
def importance_metrics(
    old_log_probs: Tensor, rollout_log_probs: Tensor, response_mask: Tensor, cap: float = 2.0
) -> Metrics:
    """The mismatch between engine and learner, over response tokens.

    `importance/weight` and `importance/weight_square`: sums of the capped weights w and of w^2, for
    `effective_sample_share`. `importance/capped`: share of tokens above the cap. `importance/ratio_max`: the largest
    weight before capping. `kl/mismatch`: KL(engine||learner) per token by k3, in nats.
    """
    mask = response_mask.bool()
    ratio = _log_ratio(old_log_probs, rollout_log_probs, mask).exp()
    weights = importance_weights(old_log_probs, rollout_log_probs, mask, cap)
    inside = ratio[mask]
    return {
        "importance/weight": metric(weights, mask),
        "importance/weight_square": metric(weights.square(), mask),
        "importance/capped": metric(ratio > cap, mask),
        "importance/ratio_max": (inside.max() if inside.numel() else inside.new_zeros(())).double(),
        "kl/mismatch": metric(estimate("k3", rollout_log_probs, old_log_probs, mask), mask),
    }


def effective_sample_share(weight_mean: float, weight_square_mean: float) -> float:
    """Kish's effective sample size as a share of the tokens, (sum w)^2 / (n sum w^2): 1 for equal weights, 0 for none.

    Takes the two finished means of `importance_metrics`, so that it is right over micro-batches and ranks. Kish 1965.
    """
    return weight_mean**2 / weight_square_mean if weight_square_mean > 0 else 0.0


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, response_mask: Tensor, clip: float | None = 0.2
) -> tuple[Tensor, Metrics]:
    """Sum over response tokens of max((V - R)^2, (clip(V, old - clip, old + clip) - R)^2) / 2: (scalar, metrics).

    Inputs are (T,) floats in units of the return; `clip` is absolute, None leaves the clipped term out. Divide by
    weight(..., "tokens"). Schulman et al. 2017, arXiv 1707.06347, as in the authors' baselines code.
    Metrics: `value/loss`, and `value/clip`, the share of tokens where the clipped term is the larger.
    """
    now, before, target = (_inside(x, response_mask) for x in (values, old_values, returns))
    loss = (now - target).square()
    clipped = torch.zeros_like(loss, dtype=torch.bool)
    if clip is not None:
        other = (before + (now - before).clamp(-clip, clip) - target).square()
        clipped = (other > loss) & ((now - before).abs() > clip)  # inside the clip the two differ by rounding alone
        loss = torch.maximum(loss, other)
    loss = 0.5 * loss
    return loss.sum(), {"value/loss": metric(loss, response_mask), "value/clip": metric(clipped, response_mask)}


def entropy_sum(entropy: Tensor, response_mask: Tensor) -> tuple[Tensor, Metrics]:
    """Sum over response tokens of the policy's entropy (T,), in nats: (scalar, {`policy/entropy`}).

    A bonus: the objective subtracts entropy_coef times it. Mnih et al. 2016, arXiv 1602.01783.
    """
    return _inside(entropy, response_mask).sum(), {"policy/entropy": metric(entropy, response_mask)}


def cross_entropy(log_probs: Tensor, mask: Tensor) -> tuple[Tensor, Metrics]:
    """-sum of the log-probs (T,) of the right tokens over `mask`, in nats: (scalar, {`loss/cross_entropy`}).

    For supervised training and for PPO-ptx (Ouyang et al. 2022, arXiv 2203.02155).
    """
    return -_inside(log_probs, mask).sum(), {"loss/cross_entropy": metric(-log_probs, mask)}


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Metrics]:
    """Sum over tokens of (1 - e) -log p[target] + e mean_v -log p[v], in nats: (scalar, {`loss/cross_entropy`, without
    e}).

    ``logits`` (R, V), ``targets`` (R,), e ``smoothing`` in [0, 1). Szegedy et al. 2016, arXiv 1512.00567, section 7.
    """
    log_p = logits.log_softmax(-1)
    plain = -log_p.gather(1, targets[:, None]).squeeze(1)
    loss = (1 - smoothing) * plain - smoothing * log_p.mean(-1) if smoothing else plain
    return loss.sum(), {"loss/cross_entropy": metric(plain, torch.ones_like(plain))}


def sides(labels: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (P,) of the chosen and of the rejected side of each pair, in the order of ``group`` (B,); ``labels`` (B,) 1
    and 0.

    Raises ValueError unless each group is one chosen and one rejected row.
    """
    if labels.shape != group.shape:
        raise ValueError(f"labels {tuple(labels.shape)} and group {tuple(group.shape)} must share one shape (B,)")
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError("labels of a preference pair must be 1 (chosen) or 0 (rejected)")
    unique, pair_of = torch.unique(group, return_inverse=True)
    # sorted by pair, then by label, sound pairs lie side by side: rejected, chosen
    place = 2 * pair_of + labels.long()
    order = torch.argsort(place)
    expected = torch.arange(2 * unique.numel(), device=group.device)
    paired_rows = place[order]
    if not torch.equal(paired_rows, expected):
        broken = unique[torch.bincount(paired_rows, minlength=expected.numel()).view(-1, 2).ne(1).any(1)]
        raise ValueError(f"group {int(broken[0])} is not one chosen and one rejected row")
    rejected_at, chosen_at = order.view(-1, 2).unbind(1)
    return chosen_at, rejected_at


def bradley_terry(
    scores: Tensor, labels: Tensor, group: Tensor, margin: Tensor, centre_coef: float = 0.0
) -> tuple[Tensor, Metrics]:
    """Sum over pairs of -log sigmoid(chosen - rejected - margin): (scalar, metrics); divide by the number of pairs.

    With ``centre_coef`` c, c (chosen + rejected)^2 is added: the loss fixes differences only (Eisenstein et al. 2023,
    arXiv 2312.09244).

    `scores` and `labels` (1 chosen, 0 rejected) are (B,); the two sides of a pair share a `group` (B,), in any place.
    `margin` (B,), in nats, is read at the chosen side. Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155;
    margin: Touvron et al. 2023, arXiv 2307.09288. Metrics per pair: `reward/accuracy` (ties are wrong, no margin),
    `reward/margin` (chosen - rejected), `loss/bradley_terry`. Raises ValueError unless each group is one chosen and
    one rejected row (:func:`sides`).
    """
    if scores.shape != labels.shape:
        raise ValueError(f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)} must share one shape (B,)")
    chosen_at, rejected_at = sides(labels, group)
    difference = scores[chosen_at] - scores[rejected_at]
    loss = -F.logsigmoid(difference - margin[chosen_at])
    if centre_coef:
        loss = loss + centre_coef * (scores[chosen_at] + scores[rejected_at]).square()
    all_pairs = torch.ones_like(difference, dtype=torch.bool)
    return loss.sum(), {
        "reward/accuracy": metric(difference > 0, all_pairs),
        "reward/margin": metric(difference, all_pairs),
        "loss/bradley_terry": metric(loss, all_pairs),
    }


def binary_cross_entropy(scores: Tensor, labels: Tensor) -> tuple[Tensor, Metrics]:
    """Sum over rows of -y log sigmoid(s) - (1 - y) log(1 - sigmoid(s)): (scalar, metrics); divide by the rows.

    `scores` (B,) are logits, `labels` (B,) lie in 0..1. Metrics per row: `reward/accuracy` (a positive score says class
    1; labels are cut at 0.5), `loss/binary_cross_entropy`. Raises ValueError for other shapes or labels out of range.
    """
    if scores.shape != labels.shape:
        raise ValueError(f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)} must share one shape (B,)")
    if ((labels < 0) | (labels > 1)).any():
        raise ValueError("labels of binary cross-entropy must lie in 0..1")
    loss = F.binary_cross_entropy_with_logits(scores, labels.to(scores.dtype), reduction="none")
    all_rows = torch.ones_like(scores, dtype=torch.bool)
    right = (scores > 0) == (labels > 0.5)
    return loss.sum(), {"reward/accuracy": metric(right, all_rows), "loss/binary_cross_entropy": metric(loss, all_rows)}


def squared_error(scores: Tensor, labels: Tensor) -> tuple[Tensor, Metrics]:
    """Sum over rows of (s - y)^2: (scalar, metrics); divide by the rows. Both are (B,)."""
    if scores.shape != labels.shape:
        raise ValueError(f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)} must share one shape (B,)")
    loss = (scores - labels).square()
    return loss.sum(), {"loss/squared_error": metric(loss, torch.ones_like(scores, dtype=torch.bool))}
