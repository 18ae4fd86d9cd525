"""The algorithms: for each ``algorithm.type`` its advantage estimator and its policy loss.

To see how an algorithm works, find its record in ``ALGORITHMS`` and follow the two functions to advantages.py and
losses.py. To add one, write the maths there, a variant in config/algorithm.py and a record here. What the planner needs
without torch are class attributes of the config variant: ``has_critic``, ``greedy_baseline``, ``token_advantages``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..batch import Batch
from . import advantages, losses


@dataclass(frozen=True, kw_only=True)
class EstimatorInputs:
    """What an advantage estimator may read: B sequences with T tokens in all, in canonical order.

    ``batch`` and ``config`` are for the few that need more: the critic's values, or options of their own.
    """

    scores: Tensor  # (B,) rewards after shaping
    penalised_scores: Tensor  # (B,) scores less the KL penalty summed over the sequence
    token_rewards: Tensor  # (T,) score on the last response token, step rewards added, KL penalties subtracted
    group: Tensor  # (B,) int64, equal for samples of one prompt
    response_mask: Tensor  # (T,) 1 at sampled tokens
    lengths: Tensor  # (B,) int64
    greedy: Tensor  # (B,) bool, rows that only serve as a baseline
    batch: Batch
    config: Any


@dataclass(frozen=True, kw_only=True)
class PolicyTensors:
    """What a policy loss may read, on the learner's device; the log-probs (T,) are in nats."""

    log_probs: Tensor  # (T,) of the policy that is trained, with gradient
    old_log_probs: Tensor  # (T,) of the policy before the step's first update
    advantages: Tensor  # (T,)
    response_mask: Tensor  # (T,)
    lengths: Tensor  # (B,)


Estimator = Callable[[EstimatorInputs], tuple[Tensor, Tensor | None]]
"""Returns advantages (T,), and returns (T,) for a critic to learn, or None."""

PolicyLoss = Callable[[PolicyTensors, Any], Tensor]
"""Takes the tensors and the config of the algorithm; returns a loss per token (T,)."""


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """How an algorithm learns. ``policy_loss`` None: the best and worst sample of a group are a pair for DPO's loss.

    ``sequence_ratio``: ratio, clip and importance weight are those of the whole sequence, not of each token.
    """

    estimate: Estimator
    policy_loss: PolicyLoss | None
    sequence_ratio: bool = False

    @property
    def paired(self) -> bool:
        """Whether it learns from preference pairs."""
        return self.policy_loss is None


def generalised_advantage(i: EstimatorInputs) -> tuple[Tensor, Tensor]:
    """GAE over the critic's values, whitened over the step."""
    bootstrap = None
    if i.config.truncated == "bootstrap":
        bootstrap = torch.tensor(i.batch.final_values) * torch.tensor(i.batch.truncated)
    values, mask = torch.tensor(i.batch.values), i.response_mask
    estimates, returns = advantages.gae(
        i.token_rewards, values, mask, i.lengths, i.config.gamma, i.config.lam, bootstrap
    )
    return advantages.whiten(estimates, mask), returns


def per_sequence(estimate: Callable[[EstimatorInputs], Tensor]) -> Estimator:
    """An estimator that gives every response token the advantage (B,) of its sequence."""
    return lambda i: (advantages.to_tokens(estimate(i), i.response_mask, i.lengths), None)


group_relative = per_sequence(lambda i: advantages.grpo(i.penalised_scores, i.group))
group_centred = per_sequence(lambda i: advantages.grpo(i.penalised_scores, i.group, scale=False))
leave_one_out = per_sequence(lambda i: advantages.rloo(i.penalised_scores, i.group))
greedy_baseline = per_sequence(lambda i: advantages.remax(i.penalised_scores, i.group, i.greedy))
best_and_worst = per_sequence(lambda i: advantages.best_and_worst(i.scores, i.group))


def return_to_go(i: EstimatorInputs) -> tuple[Tensor, None]:
    """The discounted sum of later rewards, as it is."""
    return advantages.reinforce(i.token_rewards, i.response_mask, i.lengths, i.config.gamma), None


def whitened_return(i: EstimatorInputs) -> tuple[Tensor, None]:
    """The discounted sum of later rewards, whitened over the step."""
    return advantages.reinforce_plus_plus(i.token_rewards, i.response_mask, i.lengths, i.config.gamma), None


def whitened_group_centred(i: EstimatorInputs) -> tuple[Tensor, None]:
    """The score less its group's mean, whitened over the step."""
    return advantages.reinforce_plus_plus_baseline(i.penalised_scores, i.group, i.response_mask, i.lengths), None


def clipped_token_ratio(t: PolicyTensors, config: Any) -> Tensor:
    """PPO's clip of each token's ratio."""
    return losses.clipped_policy(
        t.log_probs,
        t.old_log_probs,
        t.advantages,
        t.response_mask,
        config.clip_low,
        config.clip_high,
        config.dual_clip,
    )


def clipped_sequence_ratio(t: PolicyTensors, config: Any) -> Tensor:
    """GSPO's clip of the ratio of a whole response."""
    return losses.gspo(
        t.log_probs, t.old_log_probs, t.advantages, t.response_mask, t.lengths, config.clip_low, config.clip_high
    )


def capped_importance(t: PolicyTensors, config: Any) -> Tensor:
    """CISPO's capped and detached importance weight."""
    return losses.cispo(t.log_probs, t.old_log_probs, t.advantages, t.response_mask, config.clip_high)


ALGORITHMS: dict[str, Algorithm] = {
    "ppo": Algorithm(estimate=generalised_advantage, policy_loss=clipped_token_ratio),
    "grpo": Algorithm(estimate=group_relative, policy_loss=clipped_token_ratio),
    "dr_grpo": Algorithm(estimate=group_centred, policy_loss=clipped_token_ratio),
    "dapo": Algorithm(estimate=group_relative, policy_loss=clipped_token_ratio),
    "gspo": Algorithm(estimate=group_relative, policy_loss=clipped_sequence_ratio, sequence_ratio=True),
    "cispo": Algorithm(estimate=group_relative, policy_loss=capped_importance),
    "rloo": Algorithm(estimate=leave_one_out, policy_loss=clipped_token_ratio),
    "remax": Algorithm(estimate=greedy_baseline, policy_loss=clipped_token_ratio),
    "online_dpo": Algorithm(estimate=best_and_worst, policy_loss=None),
    "reinforce": Algorithm(estimate=return_to_go, policy_loss=clipped_token_ratio),
    "reinforce_plus_plus": Algorithm(estimate=whitened_return, policy_loss=clipped_token_ratio),
    "reinforce_plus_plus_baseline": Algorithm(estimate=whitened_group_centred, policy_loss=clipped_token_ratio),
}
