"""The objective of a search: a held-out metric, and budgets of KL and length."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import BadInput, ObjectiveConfig, Search, TrainingJob, parse
from ..jobs.kind import JobNeeds
from ..jobs.kinds import kind_of
from ..quality import pareto

RL_COSTS = ("kl", "length")
"""Held-out measures of a ppo job that are to be low: nats and tokens of an answer, on average."""

PREFIX = "evaluate/"  # of held-out metrics in metrics.jsonl


@dataclass(frozen=True, kw_only=True)
class SearchObjective:
    """``metric`` (without evaluate/) is to be high, or low if ``sign`` is -1. ``budgets`` bound some of the ``costs``."""

    metric: str
    sign: int = 1
    costs: tuple[str, ...] = ()
    budgets: Mapping[str, float]

    def measure(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Quality (the metric, negated if it is to be low), costs and score of a line of metrics.jsonl.

        Schedulers and searchers maximise the score. What was not finite is nan. Raises BadInput if the metric is not
        among ``metrics``.
        """
        key = PREFIX + self.metric
        if key not in metrics:
            names = ", ".join(k.removeprefix(PREFIX) for k in metrics if k.startswith(PREFIX))
            raise BadInput(
                f"tune.objective.metric: there is no held-out metric '{self.metric}'; this job has {names or 'none'}"
            )
        quality = self.sign * _number(metrics[key])
        costs = {name: _number(metrics.get(PREFIX + name)) for name in self.costs}
        return {"quality": quality, **costs, "score": pareto.score(quality, costs, self.budgets)}

    def within_budgets(self, measures: Mapping[str, float]) -> bool:
        """Whether the measures keep all budgets."""
        return all(measures[name] <= budget for name, budget in self.budgets.items())

    def pareto_point(self, measures: Mapping[str, float]) -> tuple[float, ...]:
        """The quality and the negated costs: more is better in all of them."""
        return (measures["quality"], *(-measures[name] for name in self.costs))

    def metric_value(self, measures: Mapping[str, float]) -> float:
        """The metric itself, as metrics.jsonl has it."""
        return self.sign * measures["quality"]

    def describe(self) -> str:
        """The objective in words: 'highest reward with kl <= 5'."""
        budgets = " and ".join(f"{name} <= {value:g}" for name, value in self.budgets.items())
        return f"{'highest' if self.sign > 0 else 'lowest'} {self.metric}" + (f" with {budgets}" if budgets else "")


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)  # metrics.jsonl has null for what is not finite


def base_job(search: Search) -> TrainingJob:
    """The job that the search starts from. Raises BadInput if it is not one training."""
    job = parse(job_tree(search), "tune")
    if kind_of(job).needs(job).training is None:
        remedy = "it trains nothing" if "" in kind_of(job).stages(job) else "give the stage a job file of its own"
        raise BadInput(f"tune: a search needs a job with one training, and job: {job.job} is none; {remedy}")
    trains: TrainingJob = job
    return trains


def job_tree(search: Search) -> dict[str, Any]:
    """The job that the search starts from, as nested dicts: the search's base with its run directory and cluster."""
    shared = {name: getattr(search, name).model_dump(mode="json") for name in ("run", "cluster")}
    return {**search.base, **shared}


def search_objective(search: Search) -> SearchObjective:
    """The objective of a search. Raises BadInput if its job cannot be searched or the objective does not fit the job."""
    job, config = base_job(search), search.tune.objective
    _check_searchable(job, search.tune.scheduler.type)
    needs = kind_of(job).needs(job)
    if needs.rl_step is not None:
        return _rl_objective(needs, config, searched_keys=list(search.tune.space))
    if config.max_kl is not None or config.max_length is not None:
        raise BadInput(
            f"tune.objective: max_kl and max_length are budgets of job: ppo; job: {job.job} has neither, remove them"
        )
    metric = config.metric or getattr(job.evaluate, "best", None)  # supervised jobs have evaluate.best
    if metric is None:
        raise BadInput(
            f"tune.objective.metric: job: {job.job} has no metric that is always the best; name a held-out one, "
            "such as '-loss/cross_entropy' or 'accuracy'"
        )
    return SearchObjective(metric=metric.removeprefix("-"), sign=_sign(metric), budgets={})


def _check_searchable(job: TrainingJob, scheduler: str) -> None:
    if job.evaluate.data is None:
        raise BadInput("tune: trials are compared on held-out data; give evaluate.data")
    if scheduler != "none" and not job.evaluate.every:
        raise BadInput(
            f"tune.scheduler: {scheduler} compares trials while they train; set evaluate.every, to a fifth of num_steps "
            "for example"
        )


def _rl_objective(needs: JobNeeds, config: ObjectiveConfig, searched_keys: list[str]) -> SearchObjective:
    metric = config.metric or "reward"
    name = metric.removeprefix("-")
    if config.max_kl is None:
        raise BadInput(
            "tune.objective.max_kl: without it the trial that hacks the reward wins; give the nats of KL that a held-out "
            "answer may cost, such as 5"
        )
    terms = [] if needs.rewards is None else needs.rewards.terms  # of the reward, then those that only judge
    names = ["reward", "kl", "length", "truncated", *(f"part/{term.name}" for term in terms)]
    if name not in names:
        raise BadInput(f"tune.objective.metric: held-out answers have no '{name}'; they have {', '.join(names)}")
    reward_keys = [key for key in searched_keys if key.split(".")[0] == "rewards"]
    if reward_keys and name == "reward":
        raise BadInput(
            f"tune.objective.metric: {reward_keys[0]} changes the reward itself, so trials cannot be compared by it; "
            "take a term, such as part/NAME of evaluate.terms"
        )
    budgets = {"kl": config.max_kl} | ({} if config.max_length is None else {"length": config.max_length})
    return SearchObjective(metric=name, sign=_sign(metric), costs=RL_COSTS, budgets=budgets)


def _sign(metric: str) -> int:
    return -1 if metric.startswith("-") else 1
