"""One trial of a search: a whole training in the trial's own placement group, in a run directory below the search's."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console

from ..actors.placement import Resources, plan_placement, with_cpu_share
from ..actors.session import Stop
from ..config import parse, set_values
from ..jobs import pipeline
from ..jobs.kinds import demand_of
from ..run.directory import RunDir
from ..run.events import TerminalHandler
from ..run.reader import read_metrics
from .clone import clone, settle
from .objective import Aim

AT = "going_on"  # the step, where the trial goes on after it: what is done is not cloned into
WAIT_S = 120.0  # for the process that held a trial's run directory before, to end


@dataclass(frozen=True)
class Trials:
    """What all trials share: the job as nested dicts, where their run directories are, what they aim at, and the search's id."""

    tree: Mapping[str, Any]
    directory: Path
    aim: Aim
    max_concurrent: int
    run_id: str | None = None

    def job(self, values: Mapping[str, Any], home: Path) -> Any:
        """The job of a trial. It checkpoints where it evaluates, so that it can go on, or be cloned, from what was reported."""
        tree = {**self.tree, "run": {**self.tree["run"], "dir": str(home)}}
        job = parse(set_values(tree, values), f"trial {home.name}")
        changed: dict[str, Any] = {}
        if not job.checkpoint.every:
            changed["checkpoint"] = job.checkpoint.model_copy(update={"every": job.evaluate.every})
        if job.cluster.num_threads is None and self.max_concurrent > 1:
            threads = max(1, (os.cpu_count() or 1) // self.max_concurrent // job.learner.num_workers)
            changed["cluster"] = job.cluster.model_copy(update={"num_threads": threads})
        return job.model_copy(update=changed)

    def group(self, values: Mapping[str, Any], nodes: list[Resources]) -> tune.PlacementGroupFactory:
        """The placement group of a trial: nothing for its driver, and a bundle for each slot of its plan. Raises BadInput."""
        job = self.job(plain(values), self.directory / "new")
        chosen = plan_placement(job.cluster, demand_of(job), with_cpu_share(nodes, self.max_concurrent))
        return tune.PlacementGroupFactory([{}, *chosen.slots], strategy="SPREAD" if job.cluster.spread else "PACK")


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as Python's own numbers: searchers draw NumPy's."""
    return {key: value.item() if hasattr(value, "item") else value for key, value in values.items()}


def train(trials: Trials, values: Mapping[str, Any]) -> None:
    """Ray Tune's trainable: trains to the end or until Tune ends it, and reports each evaluation."""
    values, name = plain(values), str(tune.get_context().get_trial_id())
    home, donor = settle(trials.directory, name, _pointer(), values)
    home.mkdir(parents=True, exist_ok=True)
    job = trials.job(values, home)

    def watch(step: int, metrics: Mapping[str, Any]) -> None:
        if step < job.num_steps:  # the last one is reported when the model is there
            _report(trials.aim, job, home, step, metrics)

    with (
        (home / "output.txt").open("a") as output,
        contextlib.redirect_stdout(output),
        contextlib.closing(TerminalHandler()),
        RunDir(job, parent_id=trials.run_id, wait_s=WAIT_S) as held,
    ):
        if donor is not None:
            clone(trials.directory / donor["run"], donor["step"], home, job, values)
        pipeline.single(job, held, Stop(), Console(file=output, width=120, markup=False, emoji=False), watch)
    _report(trials.aim, job, home, job.num_steps, last_evaluation(home))


def _pointer() -> dict[str, Any] | None:
    """What the Tune checkpoint that the trial starts from says: a trial, its run directory, a step."""
    found = tune.get_checkpoint()
    if found is None:
        return None
    with found.as_directory() as directory:
        read: dict[str, Any] = json.loads((Path(directory) / "pointer.json").read_text())
    return read


def _report(aim: Aim, job: Any, home: Path, step: int, metrics: Mapping[str, Any]) -> None:
    """Hands an evaluation to Tune, with a checkpoint that only points to ours; raises SystemExit where Tune ends the trial."""
    found: dict[str, Any] = {
        **aim.measure(metrics),
        "step": step,
        "evaluation": evaluations(job, step),
        "run": home.name,
    }
    found |= {AT: step} if step < job.num_steps else {}
    found |= {k: v for k, v in metrics.items() if k.startswith("evaluate/")}
    with tempfile.TemporaryDirectory() as directory:
        trial = str(tune.get_context().get_trial_id())
        (Path(directory) / "pointer.json").write_text(json.dumps({"trial": trial, "run": home.name, "step": step}))
        tune.report(found, checkpoint=tune.Checkpoint.from_directory(directory))


def evaluations(job: Any, step: int) -> int:
    """How many evaluations a trial has had after ``step`` steps."""
    return math.ceil(step / (job.evaluate.every or job.num_steps))


def last_evaluation(home: Path) -> dict[str, Any]:
    """The newest line of RUN/metrics.jsonl that has an evaluation; empty where there is none."""
    rows = reversed(read_metrics(home))
    return next((row for row in rows if any(key.startswith("evaluate/") for key in row)), {})
