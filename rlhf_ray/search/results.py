"""Results of a search: its trials, their Pareto front, the best one, and the importance of each key."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..config import Search
from ..config.tune import Choice, LogUniform, RandInt
from ..quality import pareto
from ..run.reader import read_manifest, read_metrics
from .objective import PREFIX, SearchObjective
from .trial import Trials, python_values

State = Literal["finished", "stopped", "failed", "unfinished"]
"""``stopped``: by the scheduler, before its last step. ``unfinished``: the search itself was stopped."""

Importance = dict[str, dict[str, float]]
"""Key of the space -> measure (quality, kl) -> the key's share of the measure's variance."""


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """A trial: its values, how far it came, and its measures at each evaluation (SearchObjective.measure and ``step``).

    The fields are those of a trial in RUN/tune.json. ``name`` is Ray Tune's, ``run`` the name of the run directory.
    """

    name: str
    run: str
    state: State
    values: dict[str, Any]
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    error: str | None = None

    @property
    def last(self) -> dict[str, float]:
        """The measures of the last evaluation; empty if there is none."""
        return self.history[-1] if self.history else {}

    @property
    def evaluated_at_end(self) -> bool:
        """Whether the trial ran to its end and was evaluated there."""
        return self.state == "finished" and bool(self.history)


@dataclass(frozen=True, kw_only=True)
class SearchResults:
    """All trials, those on the Pareto front, and the best one; or ``why`` none is best, with a remedy."""

    objective: SearchObjective
    trials: list[TrialResult]
    front: list[TrialResult]
    best: TrialResult | None
    importance: Importance
    why: str | None


def summarise(trials: list[TrialResult], search: Search, objective: SearchObjective) -> SearchResults:
    """The results of a search from its trials."""
    best = best_trial(trials, objective)
    return SearchResults(
        objective=objective,
        trials=trials,
        front=pareto_front(trials, objective),
        best=best,
        importance=importance_of_keys(trials, search),
        why=why_none_is_best(trials, objective) if best is None else None,
    )


def trial_results(grid: Any, trials: Trials, num_steps: int) -> list[TrialResult]:
    """The trials of Ray Tune's ResultGrid, in its order.

    The grid's public results do not say which trials the scheduler stopped and which were interrupted, so this reads
    the trials behind them.
    """
    return [_trial_result(trial, trials, num_steps) for trial in grid._experiment_analysis.trials]


def _trial_result(trial: Any, trials: Trials, num_steps: int) -> TrialResult:
    last = trial.last_result or {}
    name = str(trial.trial_id)
    run_dir = trials.directory / str(last.get("run", name))
    states: dict[str, State] = {"TERMINATED": "stopped", "ERROR": "failed"}
    state = states.get(trial.status, "unfinished")
    if state == "stopped" and last.get("step", 0) >= num_steps:
        state = "finished"
    error = None
    if state == "failed":  # the run's own error; Ray's if the process was killed
        ray_error = str(trial.get_error() or "").strip().splitlines()
        error = read_manifest(run_dir).get("error") or (
            ray_error[-1] if ray_error else "ended without an error message"
        )
    return TrialResult(
        name=name,
        run=run_dir.name,
        state=state,
        values=python_values(last.get("config") or trial.config),
        history=read_history(run_dir, trials.objective),
        seconds=float(last.get("time_total_s", 0.0)),
        error=error,
    )


def read_history(run_dir: Path, objective: SearchObjective) -> list[dict[str, float]]:
    """The measures at each evaluation of a run directory, with the finished steps as ``step``."""
    lines = [line for line in read_metrics(run_dir) if PREFIX + objective.metric in line]
    return [{"step": line["step"] + 1, **objective.measure(line)} for line in lines]


def pareto_front(trials: Sequence[TrialResult], objective: SearchObjective) -> list[TrialResult]:
    """The finished trials that no other one beats in quality and all costs at once."""
    finished = [trial for trial in trials if trial.evaluated_at_end]
    return [finished[i] for i in pareto.front([objective.pareto_point(trial.last) for trial in finished])]


def best_trial(trials: Sequence[TrialResult], objective: SearchObjective) -> TrialResult | None:
    """The finished trial of the highest quality that keeps all budgets; None if there is none.

    A trial that was stopped early cannot be the best: it may keep a KL budget only because it was stopped.
    """
    eligible = [
        trial
        for trial in trials
        if trial.evaluated_at_end and objective.within_budgets(trial.last) and not math.isnan(trial.last["quality"])
    ]
    return max(eligible, key=lambda trial: trial.last["quality"], default=None)


def why_none_is_best(trials: Sequence[TrialResult], objective: SearchObjective) -> str:
    """Why there is no best trial, and what to do."""
    finished = [trial for trial in trials if trial.evaluated_at_end]
    if not finished:
        errors = [trial.error for trial in trials if trial.error]
        return f"no trial reached its end{': ' + errors[0] if errors else ''}"
    nearest = max(finished, key=lambda trial: trial.last["score"])
    budgets = ", ".join(f"{name} <= {value:g}" for name, value in objective.budgets.items())
    costs = ", ".join(f"{name} {nearest.last[name]:.2f}" for name in objective.budgets)
    return (
        f"none of {len(finished)} finished trials keeps {budgets}; the nearest, {nearest.name}, has {costs}; "
        "search a higher algorithm.kl.coef or a lower learner.lr, or raise the budget"
    )


def importance_of_keys(trials: Sequence[TrialResult], search: Search) -> Importance:
    """The share of each key in the variance of quality and of KL, by Optuna's fANOVA (Hutter et al., 2014).

    Trials are compared at the last step at which all of them were evaluated. Empty without Optuna, with fewer than four
    trials, or if there is no such step.
    """
    evaluated = [trial for trial in trials if trial.history]
    if len(evaluated) < 4 or importlib.util.find_spec("optuna") is None:
        return {}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    common_steps = set.intersection(*({measures["step"] for measures in trial.history} for trial in evaluated))
    if not common_steps:
        return {}
    step = max(common_steps)
    measures = [next(m for m in trial.history if m["step"] == step) for trial in evaluated]
    distributions = {key: _optuna_distribution(d, optuna.distributions) for key, d in search.tune.space.items()}
    importance: Importance = {key: {} for key in distributions}
    for name in [n for n in ("quality", "kl") if n in measures[0]]:
        study = optuna.create_study(direction="maximize")
        for trial, measured in zip(evaluated, measures, strict=True):
            if not math.isnan(measured[name]):
                study.add_trial(
                    optuna.trial.create_trial(value=measured[name], params=trial.values, distributions=distributions)
                )
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        for key, share in optuna.importance.get_param_importances(study, evaluator=evaluator).items():
            importance[key][name] = round(float(share), 4)
    return importance


def _optuna_distribution(distribution: Any, kinds: Any) -> Any:
    """A distribution of the space as one of ``kinds``, the module optuna.distributions."""
    if isinstance(distribution, Choice):
        return kinds.CategoricalDistribution(distribution.values)
    if isinstance(distribution, RandInt):
        return kinds.IntDistribution(distribution.low, distribution.high - 1)
    return kinds.FloatDistribution(distribution.low, distribution.high, log=isinstance(distribution, LogUniform))
