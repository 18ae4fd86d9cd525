"""From scored and annotated rollouts to advantages and returns: which function for which algorithm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..algorithms import advantages as A
from ..algorithms import kl
from ..batch import Batch
from ..config import DPO
from ..learner.objectives import Objective, PolicyObjective
from ..tasks.preference import PairObjective


@dataclass(frozen=True)
class Inputs:
    """What an estimator may use: (B,) scores, their form less the summed KL penalty, (T,) token rewards, the Batch.

    ``greedy`` (B,) marks baseline rows, known before truncated samples lose their mask.
    """

    batch: Batch
    algorithm: Any
    scores: Tensor
    penalised: Tensor
    token_rewards: Tensor
    group: Tensor
    mask: Tensor
    lengths: Tensor
    greedy: Tensor


def _ppo(i: Inputs) -> tuple[Tensor, Tensor | None]:
    a, b = i.algorithm, i.batch
    bootstrap = None
    if a.truncated == "bootstrap":
        bootstrap = torch.tensor(b.final_values) * torch.tensor(b.truncated)
    values = torch.tensor(b.values)
    advantages, returns = A.gae(i.token_rewards, values, i.mask, i.lengths, a.gamma, a.lam, bootstrap)
    return A.whiten(advantages, i.mask), returns


def _grpo(i: Inputs) -> tuple[Tensor, None]:
    return A.to_tokens(A.grpo(i.penalised, i.group), i.mask, i.lengths), None


def _dr_grpo(i: Inputs) -> tuple[Tensor, None]:
    return A.to_tokens(A.grpo(i.penalised, i.group, scale=False), i.mask, i.lengths), None


def _rloo(i: Inputs) -> tuple[Tensor, None]:
    return A.to_tokens(A.rloo(i.penalised, i.group), i.mask, i.lengths), None


def _online_dpo(i: Inputs) -> tuple[Tensor, None]:
    return A.to_tokens(A.best_and_worst(i.scores, i.group), i.mask, i.lengths), None


def _remax(i: Inputs) -> tuple[Tensor, None]:
    return A.to_tokens(A.remax(i.penalised, i.group, i.greedy), i.mask, i.lengths), None


def _reinforce(i: Inputs) -> tuple[Tensor, None]:
    return A.reinforce(i.token_rewards, i.mask, i.lengths, i.algorithm.gamma), None


def _reinforce_plus_plus(i: Inputs) -> tuple[Tensor, None]:
    return A.reinforce_plus_plus(i.token_rewards, i.mask, i.lengths, i.algorithm.gamma), None


def _reinforce_plus_plus_baseline(i: Inputs) -> tuple[Tensor, None]:
    return A.reinforce_plus_plus_baseline(i.penalised, i.group, i.mask, i.lengths), None


ESTIMATORS: dict[str, Callable[[Inputs], tuple[Tensor, Tensor | None]]] = {
    "ppo": _ppo,
    "grpo": _grpo,
    "dr_grpo": _dr_grpo,
    "dapo": _grpo,
    "gspo": _grpo,
    "cispo": _grpo,
    "rloo": _rloo,
    "remax": _remax,
    "online_dpo": _online_dpo,
    "reinforce": _reinforce,
    "reinforce_plus_plus": _reinforce_plus_plus,
    "reinforce_plus_plus_baseline": _reinforce_plus_plus_baseline,
}


def paired(batch: Batch) -> Batch:
    """The rows with an advantage, two a group, labelled 1 (chosen) and 0 (rejected)."""
    sums = A.sequence_sum(torch.tensor(batch.advantages), torch.tensor(batch.lengths)).numpy()
    chosen = batch.replace(labels=np.stack([sums > 0, np.zeros(len(sums))], 1))
    return chosen.take(sums != 0)


def objective(algorithm: Any, kl_coef: float, temperature: float, max_new_tokens: int, importance: bool) -> Objective:
    """What the actor minimises on the step's samples."""
    if algorithm.type == "online_dpo":
        return PairObjective(DPO(beta=kl_coef))
    return PolicyObjective(algorithm, kl_coef, temperature, max_new_tokens, importance)


def shaped(batch: Batch, algorithm: Any, max_new_tokens: int) -> Tensor:
    """Rewards (B,) with the truncation penalty and overlong shaping that the algorithm asks for."""
    scores = torch.tensor(batch.rewards)
    if algorithm.truncated == "penalty":
        scores = scores - algorithm.truncated_penalty * torch.tensor(batch.truncated)
    if algorithm.overlong is not None:
        lengths = torch.tensor(batch.lengths - batch.prompt_length)
        scores = scores + A.overlong_penalty(
            lengths, max_new_tokens, algorithm.overlong.buffer, algorithm.overlong.coef
        )
    return scores


def token_kl(batch: Batch) -> Tensor:
    """k1 of old against reference (T,), 0 outside the response."""
    mask = torch.tensor(batch.response_mask).bool()
    return kl.estimate("k1", torch.tensor(batch.old_log_probs), torch.tensor(batch.ref_log_probs), mask)


def estimate(batch: Batch, algorithm: Any, kl_coef: float, max_new_tokens: int) -> tuple[Batch, dict[str, float]]:
    """The Batch with advantages (and returns, where there is a critic), and the metrics of this stage.

    The batch is in canonical order, so that whitening depends neither on ranks nor on arrival. Rows that only serve as a
    baseline (an empty response) are left out of the result.
    """
    greedy = torch.tensor(batch.response_lengths == 0)
    if algorithm.truncated == "mask":
        keep = ~batch.truncated.astype(bool).repeat(batch.lengths)
        batch = batch.replace(response_mask=batch.response_mask * keep)
    mask, lengths, group = (torch.tensor(x) for x in (batch.response_mask, batch.lengths, batch.group))
    scores = shaped(batch, algorithm, max_new_tokens)
    per_token = token_kl(batch) if batch.has("ref_log_probs") else torch.zeros(len(batch.tokens))
    penalties = kl_coef * per_token if algorithm.kl.where == "reward" else torch.zeros_like(per_token)
    steps = torch.tensor(batch.step_rewards) if batch.has("step_rewards") else None
    inputs = Inputs(
        batch, algorithm, scores, scores - A.sequence_sum(penalties, lengths),
        A.token_rewards(scores, mask, lengths, penalties, steps), group, mask, lengths, greedy,
    )  # fmt: skip
    advantages, returns = ESTIMATORS[algorithm.type](inputs)
    sampled = A.sequence_sum(mask, lengths) > 0
    metrics = {"advantages/mean_abs": float(advantages[mask.bool()].abs().mean()) if mask.any() else 0.0}
    if batch.has("ref_log_probs"):
        metrics["kl/reference"] = float(per_token.sum() / mask.sum().clamp(min=1))
        metrics["kl/reference_per_sequence"] = float(per_token.sum() / sampled.sum().clamp(min=1))
    if returns is not None:
        metrics["value/explained_variance"] = A.explained_variance(torch.tensor(batch.values), returns, mask)
        batch = batch.replace(returns=returns.float().numpy())
    batch = batch.replace(advantages=advantages.float().numpy()).take(sampled.numpy())
    return paired(batch) if algorithm.type == "online_dpo" else batch, metrics
