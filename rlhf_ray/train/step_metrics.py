"""Metrics of a step's stages, and the lines that show its progress."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..algorithms.losses import effective_sample_share
from ..batch import Batch
from ..config import RLJob
from ..rewards.normalise import Scales
from ..weights.messages import SyncResult


def rollout_metrics(batch: Batch, job: RLJob, step: int, kl_coef: float, reward_scales: Scales) -> dict[str, float]:
    """Rewards, lengths and staleness of the step's rollouts.

    With several reward models also the mean deviation between their standardised scores. It grows when the policy
    leaves the texts that they were trained on (Coste et al. 2023, arXiv 2310.02743).
    """
    sampled = batch.take(batch.response_lengths > 0)
    lengths = (sampled.lengths - sampled.prompt_length).astype(float)
    metrics = {
        "reward/mean": float(sampled.rewards.mean()),
        "reward/std": float(sampled.rewards.std()),
        "rollout/length_mean": float(lengths.mean()),
        "rollout/length_max": float(lengths.max()),
        "rollout/truncated": float(sampled.truncated.mean()),
        "rollout/samples": float(len(sampled)),
        "rollout/tokens": float(lengths.sum()),
        "rollout/staleness": float(step - sampled.policy_version.mean()),
        "kl/coef": kl_coef,
    }
    for i, term in enumerate(job.rewards.terms):
        part = sampled.reward_parts[:, i]
        if np.isnan(part).all():  # the term applies to no sample of the step
            continue
        metrics |= {
            f"reward/{term.name}/mean": float(np.nanmean(part)),
            f"reward/{term.name}/std": float(np.nanstd(part)),
        }
    models = [i for i, t in enumerate(job.rewards.terms) if t.type == "model" and t.name in reward_scales]
    if len(models) > 1:
        scales = np.array([reward_scales[job.rewards.terms[i].name] for i in models])
        scores = (sampled.reward_parts[:, models] - scales[:, 0]) / scales[:, 1]
        metrics["reward/disagreement"] = float(np.nanmean(scores.std(1)))
    return metrics


def with_effective_samples(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics with the effective sample size of the importance weights, as a share of the tokens."""
    if "importance/weight" in metrics:
        share = effective_sample_share(metrics["importance/weight"], metrics["importance/weight_square"])
        metrics["importance/effective_samples"] = share
    return metrics


def sync_metrics(results: Sequence[SyncResult], seconds: float) -> dict[str, float]:
    """Of a sync that took ``seconds``: the probe's largest difference (nats), bytes, bytes/s, share of verification."""
    size = results[0].num_bytes
    return {
        "sync/probe_difference": max(result.probe_difference for result in results),
        "sync/bytes": float(size),
        "sync/bytes_per_second": size / max(seconds, 1e-9),
        "sync/verify_share": max(result.verify_s for result in results) / max(seconds, 1e-9),
    }


RL_PROGRESS = {
    "reward": ("reward/mean", "+.3f"),
    "kl": ("kl/reference_per_sequence", ".2f"),
    "mismatch": ("kl/mismatch", ".1e"),
    "length": ("rollout/length_mean", ".1f"),
    "entropy": ("policy/entropy", ".2f"),
    "s": ("time/step", ".1f"),
}
"""What the progress line of RL shows: label, metric, format."""

SUPERVISED_PROGRESS = ("loss/", "reward/", "time/step", "evaluate/")
"""The first letters of the metrics that the progress line of supervised jobs shows."""


def progress_line(num_steps: int, step: int, metrics: dict[str, float]) -> str:
    """A step of RL in one line."""
    parts = [f"{label} {metrics[name]:{form}}" for label, (name, form) in RL_PROGRESS.items() if name in metrics]
    return _step_line(num_steps, step, parts)


def evaluation_line(step: int, metrics: dict[str, float]) -> str:
    """One line an evaluation."""
    return f"evaluation at step {step}: " + "  ".join(
        f"{k.removeprefix('evaluate/')} {v:.3f}" for k, v in metrics.items()
    )


def supervised_line(num_steps: int, step: int, metrics: dict[str, float]) -> str:
    """A step of a supervised job in one line."""
    parts = [f"{name} {value:.3f}" for name, value in metrics.items() if name.startswith(SUPERVISED_PROGRESS)]
    return _step_line(num_steps, step, parts)


def _step_line(num_steps: int, step: int, parts: list[str]) -> str:
    return f"step {step}/{num_steps}  " + "  ".join(parts)
