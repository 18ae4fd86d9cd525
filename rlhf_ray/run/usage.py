"""What a run uses and costs: device-seconds, tokens, idle share, money. Arithmetic alone.

A device is a GPU, or a CPU core where a job has no GPU. A stage of the driver holds all of the job's devices while it lasts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Totals = dict[str, Any]
"""Sums since the run began, as RUN/usage.json has them; ``cost`` is None without a price, rewards where there are none."""

NOTHING: Totals = {
    "steps": 0, "wall_seconds": 0.0, "device_seconds": 0.0, "busy_seconds": 0.0, "tokens": 0.0, "cost": None,
    "stages": {}, "first_reward": None, "reward": None,
}  # fmt: skip
OTHER = "other"  # seconds of a step that no stage took
BUSY = {"learner": ("annotate", "learn"), "reward": ("rollout",)}  # stages in which a role's devices work
ALL_BUSY = ("sync", "evaluate")


@dataclass(frozen=True)
class Devices:
    """The ``count`` devices of a job, and how many one worker of a role works with and there are of it: role -> (each, workers)."""

    kind: str
    count: float
    roles: Mapping[str, tuple[float, int]]


@dataclass(frozen=True)
class Step:
    """What is known of a step: seconds of the wall, of each stage, and of all engines together; tokens; mean reward.

    ``num_steps`` is 0 for what comes after the last step.
    """

    wall_s: float
    stages: Mapping[str, float]
    tokens: float
    engines_s: float = 0.0
    reward: float | None = None
    num_steps: int = 1


def busy_seconds(there: Devices, step: Step) -> float:
    """Device-seconds with work to do, at most all of the step's."""
    total = there.roles.get("rollout", (0.0, 0))[0] * step.engines_s
    for role, stages in BUSY.items():
        each, workers = there.roles.get(role, (0.0, 0))
        total += each * workers * sum(step.stages.get(name, 0.0) for name in stages)
    total += there.count * sum(step.stages.get(name, 0.0) for name in ALL_BUSY)
    return min(total, there.count * step.wall_s)


def by_stage(there: Devices, step: Step) -> dict[str, float]:
    """Device-seconds of each stage, and of what no stage took."""
    rest = max(0.0, step.wall_s - sum(step.stages.values()))
    return {name: there.count * seconds for name, seconds in {**step.stages, OTHER: rest}.items()}


def add(total: Totals, there: Devices, step: Step, price: float | None) -> Totals:
    """The totals with one step more. ``price`` is that of a device-hour; the first that is given holds for what was before it."""
    seconds = there.count * step.wall_s
    cost = total["cost"]
    if price is not None:
        before = total["device_seconds"] * price / 3600 if cost is None else cost
        cost = before + seconds * price / 3600
    stages = dict(total["stages"])
    for name, value in by_stage(there, step).items():
        stages[name] = stages.get(name, 0.0) + value
    return {
        "device": there.kind, "devices": there.count,
        "steps": total["steps"] + step.num_steps,
        "wall_seconds": total["wall_seconds"] + step.wall_s,
        "device_seconds": total["device_seconds"] + seconds,
        "busy_seconds": total["busy_seconds"] + busy_seconds(there, step),
        "tokens": total["tokens"] + step.tokens,
        "cost": cost,
        "stages": stages,
        "first_reward": step.reward if total["first_reward"] is None else total["first_reward"],
        "reward": total["reward"] if step.reward is None else step.reward,
    }  # fmt: skip


def metrics(total: Totals, there: Devices, step: Step, price: float | None) -> dict[str, float]:
    """usage/...: of the step, of each of its stages, and (``total_``) of the run up to it, ``total`` being the sums with it."""
    stages, seconds = by_stage(there, step), there.count * step.wall_s
    found = {
        "usage/device_seconds": seconds,
        "usage/tokens": step.tokens,
        "usage/idle_share": 1.0 - busy_seconds(there, step) / max(seconds, 1e-9),
        "usage/total_device_seconds": total["device_seconds"],
        "usage/total_tokens": total["tokens"],
    }
    found |= {f"usage/{name}/device_seconds": value for name, value in stages.items()}
    points = rise(total)
    if points > 0:
        found["usage/device_seconds_per_point"] = total["device_seconds"] / points
    if price is not None:
        found |= {"usage/cost": seconds * price / 3600, "usage/total_cost": total["cost"]}
        found |= {f"usage/{name}/cost": value * price / 3600 for name, value in stages.items()}
        if points > 0:
            found["usage/cost_per_point"] = total["cost"] / points
    return found


def rise(total: Totals) -> float:
    """Points of mean reward since the first step; 0 where there is no reward."""
    return 0.0 if total["reward"] is None else total["reward"] - total["first_reward"]


def idle_share(total: Totals) -> float:
    """Share of the run's device-seconds without work."""
    return 1.0 - total["busy_seconds"] / max(total["device_seconds"], 1e-9)


def together(parts: list[Totals]) -> Totals:
    """The sums of several runs, as of a pipeline's stages; a cost only where all have one. Rewards of different stages do not add up."""
    total = dict(NOTHING)
    for name in ("steps", "wall_seconds", "device_seconds", "busy_seconds", "tokens"):
        total[name] = sum(part[name] for part in parts)
    costs = [part["cost"] for part in parts]
    total["cost"] = sum(costs) if costs and None not in costs else None
    return total
