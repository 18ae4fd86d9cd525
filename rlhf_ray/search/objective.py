"""What a search looks for: a held-out metric within budgets of KL and length, from the metrics of one evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import BadInput, ObjectiveConfig, PipelineJob, RLJob, Search, Supervised, parse
from ..quality import pareto

SPENT = ("kl", "length")  # of ppo: what an answer costs, beside what it is worth


@dataclass(frozen=True)
class Aim:
    """``metric`` (evaluate/ left out) is to be high, low where ``sign`` is -1; ``budgets`` bound what is spent."""

    metric: str
    sign: int
    spent: tuple[str, ...]
    budgets: Mapping[str, float]

    def measure(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """quality, score and what is spent, of an evaluation. Raises BadInput where the metric is not among ``metrics``."""
        key = f"evaluate/{self.metric}"
        if key not in metrics:
            there = ", ".join(k.removeprefix("evaluate/") for k in metrics if k.startswith("evaluate/"))
            raise BadInput(f"tune.objective.metric: there is no held-out metric '{self.metric}' (there are {there})")
        found = {"quality": self.sign * _number(metrics[key])}
        spent = {name: _number(metrics.get(f"evaluate/{name}")) for name in self.spent}
        return found | spent | {"score": pareto.score(found["quality"], spent, self.budgets)}

    def within(self, found: Mapping[str, float]) -> bool:
        """Whether all budgets are kept."""
        return all(found[name] <= budget for name, budget in self.budgets.items())

    def point(self, found: Mapping[str, float]) -> tuple[float, ...]:
        """What a Pareto front compares, more is better in all: the quality, then what is spent, negated."""
        return (found["quality"], *(-found[name] for name in self.spent))

    def words(self) -> str:
        """The aim in words."""
        budgets = [f"{name} <= {value:g}" for name, value in self.budgets.items()]
        return f"{'highest' if self.sign > 0 else 'lowest'} {self.metric}" + (
            f" with {' and '.join(budgets)}" if budgets else ""
        )


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)  # metrics.jsonl has null for what is no number


def base_job(search: Search) -> Any:
    """The job that the search starts from."""
    return parse(tree(search), "tune")


def tree(search: Search) -> dict[str, Any]:
    """The job as nested dicts, its run directory and cluster put back."""
    shared = {name: getattr(search, name).model_dump(mode="json") for name in ("run", "cluster")}
    return {**search.base, **shared}


def aim(search: Search) -> Aim:
    """What the search looks for. Raises BadInput for a job that cannot be searched, and an objective that does not fit it."""
    job, wanted, kind = base_job(search), search.tune.objective, search.base["job"]
    if not isinstance(job, RLJob | Supervised):
        better = "give the stage a file of its own" if isinstance(job, PipelineJob) else "it trains nothing"
        raise BadInput(f"tune: a search is over one training, and job: {job.job} is none; {better}")
    if job.evaluate.data is None:
        raise BadInput("tune: trials are compared on held-out data; give evaluate.data")
    if search.tune.scheduler.type != "none" and not job.evaluate.every:
        raise BadInput(
            f"tune.scheduler: {search.tune.scheduler.type} looks at trials while they train; set evaluate.every (a fifth of "
            "num_steps, say)"
        )
    if isinstance(job, RLJob):
        return _of_rl(job, search, wanted)
    if wanted.max_kl is not None or wanted.max_length is not None:
        raise BadInput(
            f"tune.objective: max_kl and max_length are budgets of ppo; job: {kind} has neither, leave them out"
        )
    name = wanted.metric or job.evaluate.best
    if name is None:
        raise BadInput(
            f"tune.objective.metric: say which held-out metric of job: {kind} is best, such as '-loss/cross_entropy' or 'accuracy'"
        )
    return Aim(name.removeprefix("-"), -1 if name.startswith("-") else 1, (), {})


def _of_rl(job: RLJob, search: Search, wanted: ObjectiveConfig) -> Aim:
    name = wanted.metric or "reward"
    metric, sign = name.removeprefix("-"), -1 if name.startswith("-") else 1
    if wanted.max_kl is None:
        raise BadInput(
            "tune.objective.max_kl: the highest reward alone is a hacked one; say how many nats of KL a held-out answer may cost, "
            "such as 5"
        )
    known = [
        "reward",
        "kl",
        "length",
        "truncated",
        *(f"part/{t.name}" for t in [*job.rewards.terms, *job.evaluate.terms]),
    ]
    if metric not in known:
        raise BadInput(f"tune.objective.metric: held-out answers have no '{metric}'; they have {', '.join(known)}")
    moved = [key for key in search.tune.space if key.split(".")[0] == "rewards"]
    if moved and metric == "reward":
        raise BadInput(
            f"tune.objective.metric: {moved[0]} changes what the reward is, so trials cannot be compared by it; take a term, "
            "such as part/NAME of evaluate.terms"
        )
    budgets = {"kl": wanted.max_kl} | ({} if wanted.max_length is None else {"length": wanted.max_length})
    return Aim(metric, sign, SPENT, budgets)
