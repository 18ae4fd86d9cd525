"""Measured seconds of a run over those predicted for it: factors for the next prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from ..config import BadInput, SingleJob
from ..jobs.kinds import kind_of
from ..run.reader import read_metrics
from .requirements import Factors, Lengths, Setting, simulated_work
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
    """Median seconds of each stage of a step, from lines of metrics.jsonl."""
    stages = ("rollout", "annotate", "learn", "wait", "sync", "step")
    seconds = {stage: [line[f"time/{stage}"] for line in lines if f"time/{stage}" in line] for stage in stages}
    return {stage: median(values) for stage, values in seconds.items() if values}


def predicted(job: SingleJob, setting: Setting, layout: Layout, num_steps: int = NUM_STEPS) -> dict[str, float]:
    """Median simulated seconds of each stage of an RL job, by the same names.

    The first step is left out, and so are those at the end, which have nothing generated ahead.
    """
    ahead = _ahead(job)
    steps = simulate_steps(simulated_work(job, setting, num_steps + 1 + ahead), layout, ahead)[1 : num_steps + 1]
    return {name: median(s.seconds[name] for s in steps) for name in steps[0].seconds}


def _ahead(job: SingleJob) -> int:
    generation = kind_of(job).needs(job).generation
    assert generation is not None
    return generation.rollout.ahead


def lengths(responses: np.ndarray, prompts: np.ndarray, run: Path) -> Lengths:
    """The lengths that a run saw, in tokens: ``responses`` (samples,) and ``prompts`` (samples,)."""
    return Lengths(
        float(prompts.mean()), responses, f"of {run.name}: mean {responses.mean():.0f}, longest {responses.max()}"
    )


def factors(job: SingleJob, setting: Setting, layout: Layout, lines: Sequence[Mapping[str, float]]) -> Factors:
    """Measured over predicted seconds of each stage of the run's own job.

    Rollouts that are generated ahead are not timed by the step, so their seconds are tokens over tokens per second.
    """
    measured_s, predicted_s = measured(lines), predicted(job, setting, layout)
    if _ahead(job):
        measured_s["rollout"] = median(line["rollout/tokens"] / line["rollout/tokens_per_second"] for line in lines)
        chunks = simulated_work(job, setting, 1).generate
        predicted_s["rollout"] = max(sum(seconds) for seconds in chunks) / len(layout.rollout)

    def ratio(stage: str) -> float:
        return measured_s[stage] / predicted_s[stage] if measured_s.get(stage) and predicted_s.get(stage) else 1.0

    return Factors(ratio("rollout"), ratio("annotate"), ratio("learn"), ratio("sync"))
