"""Filters of scored rollouts: which rows a step trains on, as pure functions of a Batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..algorithms.advantages import keep_groups
from ..batch import Batch
from ..config.algorithm import Algorithm


def has_reward(batch: Batch) -> np.ndarray:
    """(B,) bool: rows whose reward is a number. A reward term with on_error: drop leaves NaN if it fails."""
    return np.asarray(~np.isnan(batch.rewards))


def in_group_of(batch: Batch, min_rows: int) -> np.ndarray:
    """(B,) bool: rows whose group has at least ``min_rows`` rows, so that there is something to compare with.

    Example: rows of the groups 4, 4, 7 with ``min_rows`` 2 give True, True, False.
    """
    _, group_index, group_size = np.unique(batch.group, return_inverse=True, return_counts=True)
    return np.asarray(group_size[group_index] >= min_rows)


def has_greedy_baseline(batch: Batch) -> np.ndarray:
    """(B,) bool: rows whose group has a greedy sample, which is a row without response tokens in its mask."""
    return np.isin(batch.group, batch.group[batch.response_lengths == 0])


def in_varied_group(batch: Batch) -> np.ndarray:
    """(B,) bool: rows whose group has different rewards (dynamic sampling; DAPO, Yu et al. 2025, arXiv 2503.14476)."""
    return np.asarray(keep_groups(torch.tensor(batch.rewards), torch.tensor(batch.group)).numpy())


@dataclass(frozen=True, kw_only=True)
class FilteredRollouts:
    """The rows that a step trains on, and counts of what was left out.

    ``num_failed`` samples had no reward. ``num_equal_groups`` groups have equal rewards; they are left out only by
    dynamic sampling.
    """

    batch: Batch
    num_failed: int
    num_equal_groups: int


def filter_rollouts(batch: Batch, algorithm: Algorithm) -> FilteredRollouts:
    """Leaves out samples without a reward, groups that are then too small, and (dynamic sampling) equal rewards.

    A group needs two rows if the algorithm compares the samples of a prompt, and its greedy sample if that is the
    baseline.
    """
    rewarded = has_reward(batch)
    num_failed = len(batch) - int(rewarded.sum())
    batch = batch.take(rewarded)
    varied = in_varied_group(batch)
    kept = in_group_of(batch, min(2, algorithm.samples_per_prompt))
    if algorithm.greedy_baseline:
        kept &= has_greedy_baseline(batch)
    if algorithm.dynamic_sampling is not None:
        kept &= varied
    num_equal_groups = len(np.unique(batch.group[~varied]))
    return FilteredRollouts(batch=batch.take(kept), num_failed=num_failed, num_equal_groups=num_equal_groups)
