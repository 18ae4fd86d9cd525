"""The scale of reward models' scores, frozen by the first rollouts of the starting policy."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..config import RewardsConfig
from ..rewards.reward import Scales, combine, scales


class RewardScale:
    """From reward parts to total rewards. ``scales`` are mean and deviation by the term's name, None until frozen."""

    def __init__(self, rewards: RewardsConfig) -> None:
        self.rewards = rewards
        self.scales: Scales | None = None

    def freeze(self, reward_parts: np.ndarray) -> None:
        """Takes the scales from these reward parts (B, k), unless they are frozen already."""
        if self.scales is None:
            self.scales = scales(reward_parts, self.rewards)

    def total(self, reward_parts: np.ndarray) -> np.ndarray:
        """Rewards (B,) float32 from reward parts (B, k)."""
        return combine(reward_parts, self.rewards, self.scales or {})

    def reset(self) -> None:
        """As before the first rollouts."""
        self.scales = None

    def state(self) -> Any:
        """The scales as JSON."""
        return self.scales

    def restore(self, state: Any) -> None:
        """The inverse of :meth:`state`."""
        self.scales = None if state is None else {name: (mean, std) for name, (mean, std) in state.items()}
