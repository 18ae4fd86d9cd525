"""What a run measured, put beside what would have been predicted for it: factors for the next prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from ..config import BadInput, RLJob
from ..run.reader import read_metrics
from .requirements import Factors, Lengths, Setting, step
from .simulate import Layout, simulate_steps

WARM_UP = 1  # steps that are left out
NUM_STEPS = 4


def steady_metrics(run: Path) -> list[dict[str, float]]:
    """The metrics of a run's steps without the first ones. Raises BadInput if there are too few steps."""
    lines = read_metrics(run)
    if len(lines) <= WARM_UP:
        raise BadInput(f"--from {run}: needs a run with at least {WARM_UP + 1} steps in its metrics.jsonl")
    return lines[WARM_UP:]


def measured(lines: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Median seconds of each stage of a step."""
    names = ("rollout", "annotate", "learn", "wait", "sync", "step")
    found = {n: [line[f"time/{n}"] for line in lines if f"time/{n}" in line] for n in names}
    return {name: median(values) for name, values in found.items() if values}


def predicted(job: RLJob, given: Setting, layout: Layout, num_steps: int = NUM_STEPS) -> dict[str, float]:
    """Median simulated seconds of each stage, by the same names, without the first step and those at the end with nothing ahead."""
    ahead = job.rollout.ahead
    steps = simulate_steps(step(job, given, num_steps + 1 + ahead), layout, ahead)[1 : num_steps + 1]
    return {name: median(s.seconds[name] for s in steps) for name in steps[0].seconds}


def lengths(responses: np.ndarray, prompts: np.ndarray, run: Path) -> Lengths:
    """The lengths that a run saw."""
    return Lengths(
        float(prompts.mean()), responses, f"of {run.name}: mean {responses.mean():.0f}, longest {responses.max()}"
    )


def factors(job: RLJob, given: Setting, layout: Layout, lines: Sequence[Mapping[str, float]]) -> Factors:
    """Measured over predicted seconds of each stage of the run's own job.

    Rollouts that were generated ahead are waited for, not measured: their seconds are tokens over tokens per second.
    """
    saw, said = measured(lines), predicted(job, given, layout)
    if job.rollout.ahead:
        saw["rollout"] = median(line["rollout/tokens"] / line["rollout/tokens_per_second"] for line in lines)
        said["rollout"] = max(sum(c) for c in step(job, given, 1).generate) / len(layout.rollout)

    def ratio(name: str) -> float:
        return saw[name] / said[name] if saw.get(name) and said.get(name) else 1.0

    return Factors(ratio("rollout"), ratio("annotate"), ratio("learn"), ratio("sync"))
