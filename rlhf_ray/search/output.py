"""Output of a search: a table for the terminal, RUN/tune.json, RUN/trials.svg and RUN/best.yaml."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from ..config import Search, set_values
from ..config.tune import LogUniform
from ..report.scatter import Panel, Point, write_scatter
from ..run.atomic import write_json, write_text
from .objective import job_tree
from .results import SearchResults, TrialResult


def print_results(results: SearchResults, directory: Path, console: Console) -> None:
    """Prints all trials, the errors of those that failed, the importance of keys, and the best trial."""
    console.print(results_table(results))
    for trial in results.trials:
        if trial.error:
            console.print(f"{trial.name}: {trial.error}")
    for key, shares in results.importance.items():
        console.print(f"importance of {key}: " + ", ".join(f"{share:.2f} of {name}" for name, share in shares.items()))
    best = results.best
    if best is not None:
        model = directory / "trials" / best.run / "model"
        console.print(f"best: {best.name} ({describe_measures(best, results)}); its model: {model}")
        console.print(f"train it again: rlhf-ray train {directory / 'best.yaml'}")


def write_results(results: SearchResults, search: Search, directory: Path, console: Console) -> None:
    """Writes tune.json, trials.svg (if matplotlib is installed) and best.yaml (if a trial is the best)."""
    if results.best is not None:
        write_text(directory / "best.yaml", best_yaml(results.best, results, search, directory))
    try:
        write_scatter(scatter_panels(results, search), directory / "trials.svg")
    except ImportError:
        console.print("no plot of the trials: pip install 'rlhf-ray[plots]'")
    trials = [dataclasses.asdict(trial) for trial in results.trials]
    write_json(directory / "tune.json", {**summary(results), "trials": trials})


def summary(results: SearchResults) -> dict[str, Any]:
    """What tune.json says besides the trials, and the manifest of the search."""
    return {
        "aim": results.objective.describe(),
        "best": results.best.name if results.best else None,
        "front": [trial.name for trial in results.front],
        "importance": results.importance,
        **({"why": results.why} if results.why else {}),
    }


def best_yaml(best: TrialResult, results: SearchResults, search: Search, directory: Path) -> str:
    """The job of the best trial as a file for `rlhf-ray train`, with a run directory of its own."""
    job = set_values(job_tree(search), best.values)
    job["run"]["dir"] = str(directory / "best")
    note = f"# Trial {best.name} of the search in {directory}: {describe_measures(best, results)}.\n"
    if search.tune.scheduler.type == "pbt":
        note += (
            "# Population Based Training changed keys during the trial. These are the last values; its model saw all.\n"
        )
    return note + yaml.safe_dump(job, sort_keys=False)


def describe_measures(trial: TrialResult, results: SearchResults) -> str:
    """The last measures of a trial in words: 'reward 0.344, kl 1.27, length 8.00'."""
    objective = results.objective
    costs = "".join(f", {name} {trial.last[name]:.2f}" for name in objective.costs)
    return f"{objective.metric} {objective.metric_value(trial.last):.3f}{costs}"


def results_table(results: SearchResults) -> Table:
    """A row for each trial, the best first, then the finished ones by score."""
    objective, trials, best = results.objective, results.trials, results.best
    title = f"{len(trials)} trials, {objective.describe()} (> best, * on the front, ! over a budget)"
    table = Table(title=title)
    keys = list(trials[0].values) if trials else []
    for column in ("", "trial", "state", "step", *keys, objective.metric, *objective.costs):
        table.add_column(column, justify="left" if column in ("", "trial", "state") else "right")
    for trial in sorted(trials, key=lambda t: (t is not best, t.state != "finished", -t.last.get("score", -math.inf))):
        marks = (">" if trial is best else "") + ("*" if trial in results.front else "")
        measures = [""] * (1 + len(objective.costs))
        if trial.history:
            marks += "" if objective.within_budgets(trial.last) else "!"
            costs = [f"{trial.last[name]:.2f}" for name in objective.costs]
            measures = [f"{objective.metric_value(trial.last):.3f}", *costs]
        values = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in trial.values.values()]
        table.add_row(marks, trial.name, trial.state, str(int(trial.last.get("step", 0))), *values, *measures)
    return table


def scatter_panels(results: SearchResults, search: Search) -> list[Panel]:
    """The metric over KL (of a ppo job), with the budget and the front, and over each key of the space."""
    objective, panels = results.objective, []
    evaluated = [trial for trial in results.trials if trial.history]
    for name in objective.costs[:1]:
        panels.append(
            Panel(
                x_label=f"{name} (nats)",
                y_label=objective.metric,
                points=[_point(trial, trial.last[name], results) for trial in evaluated],
                limit=objective.budgets.get(name),
                line=sorted((trial.last[name], objective.metric_value(trial.last)) for trial in results.front),
            )
        )
    for key, distribution in search.tune.space.items():
        points = [_point(trial, trial.values[key], results) for trial in evaluated]
        log = isinstance(distribution, LogUniform)
        panels.append(Panel(x_label=key, y_label=objective.metric, points=points, log=log))
    return panels


def _point(trial: TrialResult, x: Any, results: SearchResults) -> Point:
    if trial is results.best:
        kind = "chosen"
    else:
        kind = trial.state if results.objective.within_budgets(trial.last) else "over"
    return Point(x, results.objective.metric_value(trial.last), kind)
