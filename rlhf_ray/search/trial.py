"""One trial of a search: a whole training in its own placement group and its own run directory."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from rich.console import Console

from ..actors.placement import plan_placement, with_cpu_share
from ..actors.session import Stop
from ..actors.slots import Resources
from ..config import TrainingJob, parse, set_values
from ..jobs.kind import RunContext
from ..jobs.kinds import demand_of, kind_of
from ..run.directory import RunDir
from ..run.events import TerminalHandler
from ..run.reader import read_metrics
from .clone import Pointer, assign_run_dir, clone_checkpoint
from .objective import PREFIX, SearchObjective

PBT_STEP = "pbt_step"
"""The step of a result, left out of the last one: Population Based Training must not change a trial that is finished."""

WAIT_S = 120.0  # for an earlier process of the trial to release its run directory


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What all trials share: the job as nested dicts, the folder of their run directories, and the search's run id."""

    tree: Mapping[str, Any]
    directory: Path
    objective: SearchObjective
    max_concurrent: int
    run_id: str | None = None

    def job(self, values: Mapping[str, Any], run_dir: Path) -> TrainingJob:
        """The job of a trial. It writes a checkpoint at each evaluation, so that any reported step can be continued."""
        tree = {**self.tree, "run": {**self.tree["run"], "dir": str(run_dir)}}
        job: TrainingJob = parse(set_values(tree, values), f"trial {run_dir.name}")
        changes: dict[str, Any] = {}
        if not job.checkpoint.every:
            changes["checkpoint"] = job.checkpoint.model_copy(update={"every": job.evaluate.every})
        if job.cluster.num_threads is None:  # a trial's own nodes are its bundles, without whole cores
            threads = max(1, (os.cpu_count() or 1) // self.max_concurrent // job.learner.num_workers)
            changes["cluster"] = job.cluster.model_copy(update={"num_threads": threads})
        return job.model_copy(update=changes)

    def placement_group(self, values: Mapping[str, Any], nodes: list[Resources]) -> tune.PlacementGroupFactory:
        """The placement group of a trial: an empty bundle for its driver and one for each slot of its plan.

        Raises BadInput if the trial does not fit on its share of the nodes.
        """
        job = self.job(python_values(values), self.directory / "new")
        plan = plan_placement(job.cluster, demand_of(job), with_cpu_share(nodes, self.max_concurrent))
        return tune.PlacementGroupFactory([{}, *plan.slots], strategy="SPREAD" if job.cluster.spread else "PACK")


def python_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with NumPy's numbers, which searchers draw, as Python's."""
    return {key: value.item() if hasattr(value, "item") else value for key, value in values.items()}


def run_trial(trials: Trials, values: Mapping[str, Any]) -> None:
    """Ray Tune's trainable: trains to the end or until Tune ends the trial, and reports each evaluation."""
    values, trial = python_values(values), str(tune.get_context().get_trial_id())
    run_dir, donor = assign_run_dir(trials.directory, trial, _read_pointer(), values)
    run_dir.mkdir(parents=True, exist_ok=True)
    job = trials.job(values, run_dir)

    def report_evaluation(step: int, metrics: Mapping[str, Any]) -> None:
        if step < job.num_steps:  # the last one is reported when the model is exported
            _report(trials.objective, job, run_dir, step, metrics)

    with (
        (run_dir / "output.txt").open("a") as output,
        contextlib.redirect_stdout(output),
        contextlib.closing(TerminalHandler()),
        RunDir(job, parent_id=trials.run_id, wait_s=WAIT_S) as run,
    ):
        run.record("running", resources=ray.cluster_resources())
        if donor is not None:
            clone_checkpoint(trials.directory / donor.run, donor.step, run_dir, job, values)
        console = Console(file=output, width=120, markup=False, emoji=False)
        context = RunContext(run=run, stop=Stop(), console=console, watch=report_evaluation)
        kind_of(job).run_and_record(job, context)
    _report(trials.objective, job, run_dir, job.num_steps, last_evaluation(run_dir))


def _read_pointer() -> Pointer | None:
    """The pointer in the Tune checkpoint that the trial starts from; None for a trial that starts from nothing."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as directory:
        return Pointer(**json.loads((Path(directory) / "pointer.json").read_text()))


def _report(objective: SearchObjective, job: TrainingJob, run_dir: Path, step: int, metrics: Mapping[str, Any]) -> None:
    """Hands an evaluation to Tune with a checkpoint that points to ours. Raises SystemExit if Tune ends the trial."""
    result: dict[str, Any] = {
        **objective.measure(metrics),
        "step": step,
        "evaluation": num_evaluations(job, step),
        "run": run_dir.name,
        **{key: value for key, value in metrics.items() if key.startswith(PREFIX)},
    }
    if step < job.num_steps:
        result[PBT_STEP] = step
    pointer = Pointer(trial=str(tune.get_context().get_trial_id()), run=run_dir.name, step=step)
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "pointer.json").write_text(json.dumps(asdict(pointer)))
        tune.report(result, checkpoint=tune.Checkpoint.from_directory(directory))


def num_evaluations(job: TrainingJob, step: int) -> int:
    """How many evaluations a trial has had after ``step`` steps, without the one before the first step."""
    return math.ceil(step / (job.evaluate.every or job.num_steps))


def last_evaluation(run_dir: Path) -> dict[str, Any]:
    """The newest line of RUN/metrics.jsonl that has an evaluation; empty if there is none."""
    lines = reversed(read_metrics(run_dir))
    return next((line for line in lines if any(key.startswith(PREFIX) for key in line)), {})
