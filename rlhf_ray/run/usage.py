"""What a run has used and what it cost, in RUN/usage.json: device-seconds, tokens, idle share, money.

A device is a GPU, or a CPU core if a job has no GPU. Each stage of a step occupies all devices of the job.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..config import BadInput
from .atomic import write_json
from .directory import RunDir
from .reader import USAGE_REMEDY, read_usage_json

OTHER = "other"  # the stage of the seconds that no stage took
BUSY_STAGES = {"learner": ("annotate", "learn"), "reward": ("rollout",)}  # role -> stages in which its devices work
ALL_BUSY_STAGES = ("sync", "evaluate")


@dataclass(frozen=True)
class Devices:
    """The devices of a job: their kind ("GPU" or "CPU"), their number, and what each role has of them.

    ``roles`` maps a role to (devices of one worker, number of workers).
    """

    kind: str
    count: float
    roles: Mapping[str, tuple[float, int]]


@dataclass(frozen=True, kw_only=True)
class StepUsage:
    """What a step took: seconds of the wall, of each stage, and of all rollout engines together; tokens; mean reward.

    ``num_steps`` is 0 for what comes after the last step.
    """

    wall_s: float
    stages: Mapping[str, float]
    tokens: float
    engines_s: float = 0.0
    reward: float | None = None
    num_steps: int = 1


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Sums since the run began, over all its restarts; the content of RUN/usage.json.

    ``cost`` is None without a price, the rewards are None for a job without rewards. ``device`` and ``devices`` (kind
    and number) are None for a sum over several runs. ``stages`` maps a stage to its device-seconds.
    """

    device: str | None = None
    devices: float | None = None
    steps: int = 0
    wall_seconds: float = 0.0
    device_seconds: float = 0.0
    busy_seconds: float = 0.0
    tokens: float = 0.0
    cost: float | None = None
    stages: dict[str, float] = field(default_factory=dict)
    first_reward: float | None = None
    reward: float | None = None

    def with_step(self, devices: Devices, step: StepUsage, price: float | None) -> Usage:
        """These sums and one more step. ``price`` is that of a device-hour; the first holds for earlier steps too."""
        seconds = devices.count * step.wall_s
        cost = self.cost
        if price is not None:
            earlier = self.device_seconds * price / 3600 if cost is None else cost
            cost = earlier + seconds * price / 3600
        stages = dict(self.stages)
        for name, value in seconds_by_stage(devices, step).items():
            stages[name] = stages.get(name, 0.0) + value
        return Usage(
            device=devices.kind,
            devices=devices.count,
            steps=self.steps + step.num_steps,
            wall_seconds=self.wall_seconds + step.wall_s,
            device_seconds=self.device_seconds + seconds,
            busy_seconds=self.busy_seconds + busy_seconds(devices, step),
            tokens=self.tokens + step.tokens,
            cost=cost,
            stages=stages,
            first_reward=step.reward if self.first_reward is None else self.first_reward,
            reward=self.reward if step.reward is None else step.reward,
        )

    @property
    def reward_rise(self) -> float:
        """Points of mean reward gained since the first step; 0 for a job without rewards."""
        return 0.0 if self.reward is None or self.first_reward is None else self.reward - self.first_reward

    @property
    def idle_share(self) -> float:
        """Share of the device-seconds in which a device had no work."""
        return 1.0 - self.busy_seconds / max(self.device_seconds, 1e-9)

    def to_json(self) -> dict[str, Any]:
        """The object that is written to usage.json and to manifests; without the devices if they are None."""
        values = dataclasses.asdict(self)
        if self.device is None:
            del values["device"], values["devices"]
        return values


def busy_seconds(devices: Devices, step: StepUsage) -> float:
    """Device-seconds of a step in which a device had work, at most all device-seconds of the step.

    Engines count their own seconds; learners work while they annotate and learn; all devices work in a sync and an
    evaluation. Ranks that wait for each other within a stage count as busy, and so do reward models during rollouts.
    """
    seconds = devices.roles.get("rollout", (0.0, 0))[0] * step.engines_s
    for role, stages in BUSY_STAGES.items():
        devices_each, num_workers = devices.roles.get(role, (0.0, 0))
        seconds += devices_each * num_workers * sum(step.stages.get(name, 0.0) for name in stages)
    seconds += devices.count * sum(step.stages.get(name, 0.0) for name in ALL_BUSY_STAGES)
    return min(seconds, devices.count * step.wall_s)


def seconds_by_stage(devices: Devices, step: StepUsage) -> dict[str, float]:
    """Device-seconds of each stage of a step, and of the stage "other": what no stage took."""
    rest = max(0.0, step.wall_s - sum(step.stages.values()))
    return {name: devices.count * seconds for name, seconds in {**step.stages, OTHER: rest}.items()}


def usage_metrics(total: Usage, devices: Devices, step: StepUsage, price: float | None) -> dict[str, float]:
    """usage/...: of the step, of each of its stages, and of the run up to it (``total``, which includes the step)."""
    stages, seconds = seconds_by_stage(devices, step), devices.count * step.wall_s
    metrics = {
        "usage/device_seconds": seconds,
        "usage/tokens": step.tokens,
        "usage/idle_share": 1.0 - busy_seconds(devices, step) / max(seconds, 1e-9),
        "usage/total_device_seconds": total.device_seconds,
        "usage/total_tokens": total.tokens,
    }
    metrics |= {f"usage/{stage}/device_seconds": value for stage, value in stages.items()}
    points = total.reward_rise
    if points > 0:
        metrics["usage/device_seconds_per_point"] = total.device_seconds / points
    if price is not None and total.cost is not None:
        metrics |= {"usage/cost": seconds * price / 3600, "usage/total_cost": total.cost}
        metrics |= {f"usage/{stage}/cost": value * price / 3600 for stage, value in stages.items()}
        if points > 0:
            metrics["usage/cost_per_point"] = total.cost / points
    return metrics


def sum_usage(parts: Iterable[Usage]) -> Usage:
    """The sums of several runs, such as a pipeline's stages.

    There is a cost only if all parts have one. Stages and rewards are left out: those of different runs do not add up.
    """
    parts = list(parts)
    costs = [part.cost for part in parts if part.cost is not None]
    return Usage(
        steps=sum(part.steps for part in parts),
        wall_seconds=sum(part.wall_seconds for part in parts),
        device_seconds=sum(part.device_seconds for part in parts),
        busy_seconds=sum(part.busy_seconds for part in parts),
        tokens=sum(part.tokens for part in parts),
        cost=sum(costs) if costs and len(costs) == len(parts) else None,
    )


class Meter:
    """Counts what a run uses, from the opening of its run directory on, and keeps RUN/usage.json.

    Work that is repeated after a fault counts again, because it was paid for. If the process dies, what it did after
    its last finished step is lost.
    """

    def __init__(self, run: RunDir, devices: Devices, price_per_gpu_hour: float | None) -> None:
        self.file, self.price, self.devices = run.path / "usage.json", price_per_gpu_hour, devices
        self.total = read_usage(run.path) or Usage()
        self.unassigned = {"start": time.time() - run.opened}  # stages that belong to the next step
        self.last_time = time.monotonic() - self.unassigned["start"]

    def step(
        self, stages: Mapping[str, float], tokens: float, engines_s: float = 0.0, reward: float | None = None
    ) -> dict[str, float]:
        """Adds everything since the last call as one step and returns its usage/... metrics; see :class:`StepUsage`."""
        step = self._add(stages, tokens=tokens, engines_s=engines_s, reward=reward)
        return usage_metrics(self.total, self.devices, step, self.price)

    def finish(self, stages: Mapping[str, float]) -> None:
        """Adds everything since the last step, such as its checkpoint, which is no step of its own."""
        self._add(stages, tokens=0.0, num_steps=0)

    def _add(self, stages: Mapping[str, float], **values: Any) -> StepUsage:
        now = time.monotonic()
        step = StepUsage(wall_s=now - self.last_time, stages={**self.unassigned, **stages}, **values)
        self.last_time, self.unassigned = now, {}
        self.total = self.total.with_step(self.devices, step, self.price)
        write_json(self.file, self.total.to_json())
        return step


_ADAPTER = TypeAdapter(Usage)
_REQUIRED = {"device", "devices", "steps", "wall_seconds", "device_seconds", "busy_seconds", "tokens", "stages"}


def read_usage(run_dir: Path) -> Usage | None:
    """RUN/usage.json; None if the run has counted nothing. Raises BadInput for a damaged file."""
    file, value = run_dir / "usage.json", read_usage_json(run_dir)
    if value is None:
        return None
    if not set(value) >= _REQUIRED:
        raise BadInput(f"{file}: damaged, without {min(_REQUIRED - set(value))}; restore it, or {USAGE_REMEDY}")
    try:
        return _ADAPTER.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise BadInput(f"{file}: damaged, {key}: {first['msg']}; restore it, or {USAGE_REMEDY}") from None


def read_stage_usage(run_dir: Path) -> dict[str, Usage]:
    """The usage of each run of a pipeline by its directory's name, in the order in which they ended.

    Stages that were set aside (NAME.old-1) are included. Raises BadInput for a damaged file.
    """
    files = sorted(run_dir.glob("*/usage.json"), key=lambda file: file.stat().st_mtime)
    usages = {file.parent.name: read_usage(file.parent) for file in files}
    return {name: usage for name, usage in usages.items() if usage is not None}
