"""From scored and annotated rollouts to advantages: what all algorithms share before their estimators."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..batch import Batch
from . import advantages, kl
from .registry import ALGORITHMS, EstimatorInputs


def estimate_advantages(
    batch: Batch, config: Any, kl_coef: float, max_new_tokens: int
) -> tuple[Batch, dict[str, float]]:
    """The Batch with advantages (and returns if there is a critic), and the metrics of this stage.

    The rows must be in canonical order, so that whitening depends neither on ranks nor on the order of arrival. Rows
    that only serve as a baseline (an empty response) are left out. Of an algorithm that learns from preference pairs,
    only the pairs remain.
    """
    greedy = torch.tensor(batch.response_lengths == 0)  # before truncated samples lose their mask
    if config.truncated == "mask":
        complete = ~batch.truncated.astype(bool).repeat(batch.lengths)  # (T,)
        batch = batch.replace(response_mask=batch.response_mask * complete)
    mask, lengths, group = (torch.tensor(x) for x in (batch.response_mask, batch.lengths, batch.group))
    scores = shaped_scores(batch, config, max_new_tokens)
    kl_per_token = token_kl(batch) if batch.has("ref_log_probs") else torch.zeros(len(batch.tokens))
    penalties = kl_coef * kl_per_token if config.kl.where == "reward" else torch.zeros_like(kl_per_token)
    step_rewards = torch.tensor(batch.step_rewards) if batch.has("step_rewards") else None
    algorithm = ALGORITHMS[config.type]
    estimates, returns = algorithm.estimate(
        EstimatorInputs(
            scores=scores,
            penalised_scores=scores - advantages.sequence_sum(penalties, lengths),
            token_rewards=advantages.token_rewards(scores, mask, lengths, penalties, step_rewards),
            group=group,
            response_mask=mask,
            lengths=lengths,
            greedy=greedy,
            batch=batch,
            config=config,
        )
    )
    sampled = advantages.sequence_sum(mask, lengths) > 0
    metrics = {"advantages/mean_abs": float(estimates[mask.bool()].abs().mean()) if mask.any() else 0.0}
    if batch.has("ref_log_probs"):
        metrics["kl/reference"] = float(kl_per_token.sum() / mask.sum().clamp(min=1))
        metrics["kl/reference_per_sequence"] = float(kl_per_token.sum() / sampled.sum().clamp(min=1))
    if returns is not None:
        values = torch.tensor(batch.values)
        metrics["value/explained_variance"] = advantages.explained_variance(values, returns, mask)
        batch = batch.replace(returns=returns.float().numpy())
    batch = batch.replace(advantages=estimates.float().numpy()).take(sampled.numpy())
    return preference_pairs(batch) if algorithm.paired else batch, metrics


def shaped_scores(batch: Batch, config: Any, max_new_tokens: int) -> Tensor:
    """Rewards (B,) with the truncation penalty and the overlong penalty that the algorithm's options ask for."""
    scores = torch.tensor(batch.rewards)
    if config.truncated == "penalty":
        scores = scores - config.truncated_penalty * torch.tensor(batch.truncated)
    if config.overlong is not None:
        lengths = torch.tensor(batch.lengths - batch.prompt_length)
        scores = scores + advantages.overlong_penalty(
            lengths, max_new_tokens, config.overlong.buffer, config.overlong.coef
        )
    return scores


def token_kl(batch: Batch) -> Tensor:
    """k1 of the old policy against the reference (T,), in nats; 0 outside the response."""
    mask = torch.tensor(batch.response_mask).bool()
    return kl.estimate("k1", torch.tensor(batch.old_log_probs), torch.tensor(batch.ref_log_probs), mask)


def mean_sequence_kl(batch: Batch) -> float:
    """k1 of the old policy against the reference in nats, summed over a sequence; the mean over the Batch."""
    return float(token_kl(batch).sum()) / len(batch)


def preference_pairs(batch: Batch) -> Batch:
    """The rows with an advantage, two of each group, labelled 1 (chosen) and 0 (rejected)."""
    sums = advantages.sequence_sum(torch.tensor(batch.advantages), torch.tensor(batch.lengths)).numpy()
    labelled = batch.replace(labels=np.stack([sums > 0, np.zeros(len(sums))], 1))
    return labelled.take(sums != 0)
