"""What a search found: its trials, the front of them, the best within the budgets, and how much each key mattered."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from ..config import Search, set_values
from ..config.tune import Choice, LogUniform, RandInt
from ..quality import pareto
from ..report.scatter import Panel, Point, write_scatter
from ..run.atomic import write_json, write_text
from ..run.reader import read_manifest, read_metrics
from .objective import Aim, tree
from .trial import Trials, plain


@dataclass(frozen=True)
class Row:
    """A trial: what it was given, how far it came, and what was measured at each evaluation (Aim.measure, with the step)."""

    name: str
    run: str
    state: str  # finished, stopped (by the scheduler), failed, unfinished
    values: dict[str, Any]
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    error: str | None = None

    @property
    def last(self) -> dict[str, float]:
        """The last evaluation; empty where there is none."""
        return self.history[-1] if self.history else {}


def rows(grid: Any, trials: Trials, num_steps: int) -> list[Row]:
    """The trials of Tune's results, in their order."""
    # the public results say not which trials were stopped and which interrupted
    return [_row(trial, trials, num_steps) for trial in grid._experiment_analysis.trials]


def _row(trial: Any, trials: Trials, num_steps: int) -> Row:
    last = trial.last_result or {}
    name = str(trial.trial_id)
    home = trials.directory / str(last.get("run", name))
    state = {"TERMINATED": "stopped", "ERROR": "failed"}.get(trial.status, "unfinished")
    if state == "stopped" and last.get("step", 0) >= num_steps:
        state = "finished"
    error = None
    if state == "failed":  # said by the run itself, or, where its process was killed, by Ray
        said = str(trial.get_error() or "").strip().splitlines()
        error = read_manifest(home).get("error") or (said[-1] if said else "ended without a word")
    values = plain(last.get("config") or trial.config)
    return Row(
        name, home.name, state, values, evaluations(home, trials.aim), float(last.get("time_total_s", 0.0)), error
    )


def evaluations(home: Path, aim: Aim) -> list[dict[str, float]]:
    """What was measured at each evaluation of a run directory, with its step."""
    lines = read_metrics(home)
    return [{"step": line["step"] + 1, **aim.measure(line)} for line in lines if f"evaluate/{aim.metric}" in line]


def front(found: Sequence[Row], aim: Aim) -> list[Row]:
    """The finished trials that no other finished one beats in quality, KL and length at once."""
    done = [row for row in found if row.state == "finished" and row.history]
    return [done[i] for i in pareto.front([aim.point(row.last) for row in done])]


def best(found: Sequence[Row], aim: Aim) -> Row | None:
    """The finished trial of the highest quality that keeps all budgets, or None. A trial that was stopped early may keep a KL budget
    only because it was stopped, and is not chosen."""
    done = [r for r in found if r.state == "finished" and r.history and aim.within(r.last)]
    sound = [r for r in done if not math.isnan(r.last["quality"])]
    return max(sound, key=lambda r: r.last["quality"], default=None)


def why_none(found: Sequence[Row], aim: Aim) -> str:
    """Why there is no best trial, and what to do."""
    done = [row for row in found if row.state == "finished" and row.history]
    if not done:
        errors = [row.error for row in found if row.error]
        return f"no trial reached its end{': ' + errors[0] if errors else ''}"
    nearest = max(done, key=lambda row: row.last["score"])
    spent = ", ".join(f"{name} {nearest.last[name]:.2f}" for name in aim.budgets)
    return (
        f"none of {len(done)} finished trials keeps {', '.join(f'{k} <= {v:g}' for k, v in aim.budgets.items())}; the nearest, "
        f"{nearest.name}, has {spent}: search a higher algorithm.kl.coef or a lower learner.lr, or raise the budget"
    )


def conclude(found: list[Row], search: Search, aim: Aim, directory: Path, console: Console) -> dict[str, Any]:
    """Prints the table and writes RUN/tune.json, trials.svg and, where a trial is best, best.yaml. Returns what tune.json says."""
    chosen, ahead = best(found, aim), front(found, aim)
    weights = importance(found, search)
    console.print(table(found, ahead, chosen, aim))
    for row in found:
        if row.error:
            console.print(f"{row.name}: {row.error}")
    for key, shares in weights.items():
        console.print(f"importance of {key}: " + ", ".join(f"{share:.2f} of {what}" for what, share in shares.items()))
    results: dict[str, Any] = {
        "aim": aim.words(),
        "best": chosen.name if chosen else None,
        "front": [row.name for row in ahead],
        "importance": weights,
        "trials": [dataclasses.asdict(row) for row in found],
    }
    if chosen is None:
        results["why"] = why_none(found, aim)
    else:
        file = directory / "best.yaml"
        write_text(file, best_yaml(chosen, search, aim, directory))
        console.print(
            f"best: {chosen.name} ({_measured(chosen.last, aim)}); its model: {directory / 'trials' / chosen.run / 'model'}"
        )
        console.print(f"train it again: rlhf-ray train {file}")
    try:
        write_scatter(panels(found, ahead, chosen, search, aim), directory / "trials.svg")
    except ImportError:
        console.print("no plot of the trials: pip install 'rlhf-ray[plots]'")
    write_json(directory / "tune.json", results)
    return {key: results[key] for key in ("aim", "best", "front", "importance", "why") if key in results}


def best_yaml(row: Row, search: Search, aim: Aim, directory: Path) -> str:
    """The trial's job as a file for `train`, with a run directory of its own."""
    job = set_values(tree(search), row.values)
    job["run"]["dir"] = str(directory / "best")
    note = f"# Trial {row.name} of the search in {directory}: {_measured(row.last, aim)}.\n"
    if search.tune.scheduler.type == "pbt":
        note += "# Population Based Training changed keys on the way: these are the last ones, and the trained model is the trial's.\n"
    return note + yaml.safe_dump(job, sort_keys=False)


def _measured(last: Mapping[str, float], aim: Aim) -> str:
    spent = "".join(f", {name} {last[name]:.2f}" for name in aim.spent)
    return f"{aim.metric} {aim.sign * last['quality']:.3f}{spent}"


def table(found: Sequence[Row], ahead: Sequence[Row], chosen: Row | None, aim: Aim) -> Table:
    """A row a trial, the best first; * is on the front, > is chosen, ! is over a budget."""
    made = Table(title=f"{len(found)} trials, {aim.words()} (> chosen, * on the front, ! over a budget)")
    keys = list(found[0].values) if found else []
    for column in ("", "trial", "state", "step", *keys, aim.metric, *aim.spent):
        made.add_column(column, justify="left" if column in ("", "trial", "state") else "right")
    for row in sorted(found, key=lambda r: (r is not chosen, r.state != "finished", -r.last.get("score", -math.inf))):
        mark = (">" if row is chosen else "") + ("*" if row in ahead else "")
        mark += "!" if row.history and not aim.within(row.last) else ""
        last = row.last
        measured = (
            [f"{aim.sign * last['quality']:.3f}", *(f"{last[n]:.2f}" for n in aim.spent)]
            if last
            else [""] * (1 + len(aim.spent))
        )
        values = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values.values()]
        made.add_row(mark, row.name, row.state, str(int(last.get("step", 0))), *values, *measured)
    return made


def panels(found: Sequence[Row], ahead: Sequence[Row], chosen: Row | None, search: Search, aim: Aim) -> list[Panel]:
    """Quality over KL with the budget and the front, and over each key."""
    shown = [row for row in found if row.history]
    made = []
    for name in aim.spent[:1]:
        points = [_point(row, row.last[name], chosen, aim) for row in shown]
        line = sorted((row.last[name], aim.sign * row.last["quality"]) for row in ahead)
        limit = aim.budgets.get(name)
        made.append(Panel(x_label=f"{name} (nats)", y_label=aim.metric, points=points, limit=limit, line=line))
    for key, d in search.tune.space.items():
        points = [_point(row, row.values[key], chosen, aim) for row in shown]
        made.append(Panel(x_label=key, y_label=aim.metric, points=points, log=isinstance(d, LogUniform)))
    return made


def _point(row: Row, x: Any, chosen: Row | None, aim: Aim) -> Point:
    kind = "chosen" if row is chosen else "over" if not aim.within(row.last) else row.state
    return Point(x, aim.sign * row.last["quality"], kind)


def importance(found: Sequence[Row], search: Search) -> dict[str, dict[str, float]]:
    """For each key its share of the variance of quality (and of KL), by Optuna's fANOVA (Hutter et al., 2014), at the last step that all
    trials were evaluated at; empty without Optuna or with fewer than four trials."""
    seen = [row for row in found if row.history]
    if len(seen) < 4 or importlib.util.find_spec("optuna") is None:
        return {}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    common = set.intersection(*({h["step"] for h in row.history} for row in seen))
    if not common:
        return {}
    at = [next(h for h in row.history if h["step"] == max(common)) for row in seen]
    kinds = {key: _kind(d, optuna.distributions) for key, d in search.tune.space.items()}
    weights: dict[str, dict[str, float]] = {key: {} for key in kinds}
    for name in [n for n in ("quality", "kl") if n in at[0]]:
        study = optuna.create_study(direction="maximize")
        for row, measured in zip(seen, at, strict=True):
            if not math.isnan(measured[name]):
                study.add_trial(optuna.trial.create_trial(value=measured[name], params=row.values, distributions=kinds))
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        for key, share in optuna.importance.get_param_importances(study, evaluator=evaluator).items():
            weights[key][name] = round(float(share), 4)
    return weights


def _kind(d: Any, kinds: Any) -> Any:
    if isinstance(d, Choice):
        return kinds.CategoricalDistribution(d.values)
    if isinstance(d, RandInt):
        return kinds.IntDistribution(d.low, d.high - 1)
    return kinds.FloatDistribution(d.low, d.high, log=isinstance(d, LogUniform))
