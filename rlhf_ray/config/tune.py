"""The section `tune:` of a job file: the space, the searcher, the scheduler and the objective.

It is not a part of the job. The five classes of distributions stay apart: `type:` chooses one, and each has only the
keys that mean something for it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .run import ClusterConfig, RunConfig
from .section import Section

Scalar = bool | int | float | str | None


class Choice(Section):
    """One of some values, all equally likely."""

    type: Literal["choice"] = "choice"
    values: list[Scalar] = Field(..., min_length=1, description="The values.")

    def draw(self, rng: random.Random) -> Any:
        """A value at random."""
        return rng.choice(self.values)

    def extremes(self) -> list[Any]:
        """The values that stand for all others when a space is checked: here all of them."""
        return [*self.values]

    def clip(self, value: Any) -> Any:
        """``value``, which is one of the values already."""
        return value


class Grid(Choice):
    """Each of some values. Several keys with grids are tried in all combinations."""

    type: Literal["grid"] = "grid"  # type: ignore[assignment]


class Uniform(Section):
    """A number between two others, uniform."""

    type: Literal["uniform"] = "uniform"
    low: float = Field(..., description="The lowest value.")
    high: float = Field(..., description="The highest value.")

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        if self.low >= self.high:
            raise ValueError(f"low = {self.low:g} is not below high = {self.high:g}")
        return self

    def draw(self, rng: random.Random) -> Any:
        """A value at random."""
        return rng.uniform(self.low, self.high)

    def extremes(self) -> list[Any]:
        """The lowest and the highest value."""
        return [self.low, self.high]

    def clip(self, value: Any) -> Any:
        """The allowed value nearest to ``value``."""
        return min(max(value, self.low), self.high)


class LogUniform(Uniform):
    """A number between two others whose logarithm is uniform: for learning rates and coefficients."""

    type: Literal["loguniform"] = "loguniform"  # type: ignore[assignment]
    low: float = Field(..., gt=0, description="The lowest value.")

    def draw(self, rng: random.Random) -> Any:
        """A value at random."""
        return math.exp(rng.uniform(math.log(self.low), math.log(self.high)))


class QUniform(Uniform):
    """A multiple of q between two numbers, uniform."""

    type: Literal["quniform"] = "quniform"  # type: ignore[assignment]
    q: float = Field(..., gt=0, description="Step: all values are multiples of it.")

    @model_validator(mode="after")
    def _multiples(self) -> QUniform:
        if any(abs(bound / self.q - round(bound / self.q)) > 1e-6 for bound in (self.low, self.high)):
            raise ValueError(f"low = {self.low:g} and high = {self.high:g} must be multiples of q = {self.q:g}")
        return self

    def draw(self, rng: random.Random) -> Any:
        """A value at random."""
        return round(super().draw(rng) / self.q) * self.q


class RandInt(Section):
    """A whole number, uniform; low <= number < high."""

    type: Literal["randint"] = "randint"
    low: int = Field(..., description="The lowest value.")
    high: int = Field(..., description="One more than the highest value, as in Python's range.")

    @model_validator(mode="after")
    def _ordered(self) -> RandInt:
        if self.low >= self.high:
            raise ValueError(f"low = {self.low} is not below high = {self.high}")
        return self

    def draw(self, rng: random.Random) -> Any:
        """A value at random."""
        return rng.randrange(self.low, self.high)

    def extremes(self) -> list[Any]:
        """The lowest and the highest value."""
        return [self.low, self.high - 1]

    def clip(self, value: Any) -> Any:
        """The allowed value nearest to ``value``."""
        return min(max(int(value), self.low), self.high - 1)


Distribution = Annotated[Choice | Grid | Uniform | LogUniform | QUniform | RandInt, Field(discriminator="type")]


class RandomSearch(Section):
    """Independent draws, and every combination of grids."""

    type: Literal["random"] = "random"


class OptunaSearch(Section):
    """Optuna's tree of Parzen estimators (extra: optuna)."""

    type: Literal["optuna"] = "optuna"
    pareto: bool = Field(
        False,
        description="Search the Pareto front of metric, KL and length instead of the best trial within the budgets.",
    )


class HyperOptSearch(Section):
    """HyperOpt's tree of Parzen estimators (extra: hyperopt)."""

    type: Literal["hyperopt"] = "hyperopt"


class NoScheduler(Section):
    """All trials run to their end."""

    type: Literal["none"] = "none"


class ASHA(Section):
    """Asynchronous successive halving (Li et al., 2018): at each rung only the best trials continue."""

    type: Literal["asha"] = "asha"
    grace: int | None = Field(None, ge=1, description="Steps before a trial may be stopped; none: evaluate.every.")
    reduction_factor: float = Field(3.0, gt=1, description="One trial in this many continues at each rung.")


class HyperBand(Section):
    """HyperBand (Li et al., 2016).

    Trials wait for each other at each rung, and the best continue from their checkpoints.
    """

    type: Literal["hyperband"] = "hyperband"
    reduction_factor: float = Field(3.0, gt=1, description="One trial in this many continues at each rung.")


class MedianStopping(Section):
    """Median stopping (Golovin et al., 2017).

    A trial is stopped if its best score is below the median of the other trials' running means.
    """

    type: Literal["median"] = "median"
    grace: int | None = Field(None, ge=1, description="Steps before a trial may be stopped; none: evaluate.every.")
    min_trials: int = Field(3, ge=1, description="Trials that the median needs.")


class PopulationBased(Section):
    """Population Based Training (Jaderberg et al., 2017).

    The worst trials continue from the checkpoints of the best ones, with changed values.
    """

    type: Literal["pbt"] = "pbt"
    every: int | None = Field(None, ge=1, description="Steps between exchanges of checkpoints; none: evaluate.every.")
    quantile: float = Field(0.25, gt=0, le=0.5, description="Share of the trials that count as best, and as worst.")
    synchronous: bool = Field(
        False,
        description="All trials wait for each other at an exchange; the result then does not depend on their speed.",
    )
    resample: float = Field(
        0.25, ge=0, le=1, description="Chance that a key is drawn again instead of multiplied by 0.8 or 1.2."
    )


class ObjectiveConfig(Section):
    """The measure by which the best trial is chosen.

    For job: ppo it is never the reward alone: a policy over the KL budget is not chosen, however high its reward is.
    """

    metric: str | None = Field(
        None,
        description="Held-out metric to maximise, with '-' before it if less is better; none: the reward of ppo, else "
        "evaluate.best.",
    )
    max_kl: float | None = Field(
        None, gt=0, description="Largest mean KL to the reference of a held-out answer, in nats; ppo requires it."
    )
    max_length: float | None = Field(
        None, gt=0, description="Largest mean length of a held-out answer, in tokens; for ppo."
    )


NOT_SEARCHABLE = {
    "job": "a search is over one job",
    "cluster": "trials share it",
    "log": "it changes no result",
    "checkpoint": "it changes no result",
    "evaluate": "trials must be measured alike",
    "tune": "it is the search itself",
    "stages": "a search is over one training",
}
"""First part of a key that a space may not have -> the reason."""


class TuneConfig(Section):
    """The search. `rlhf-ray train` checks this section and ignores it."""

    space: dict[str, Distribution] = Field(
        ..., min_length=1, description="Keys of the job to search, each with its distribution."
    )
    num_samples: int = Field(10, ge=1, description="Trials; with grids, trials for each combination.")
    max_concurrent: int = Field(
        1, ge=1, description="Trials at a time; each may use 1 / max_concurrent of the CPUs of every node."
    )
    max_failures: int = Field(1, ge=0, description="How often a failed trial continues from its last checkpoint.")
    searcher: RandomSearch | OptunaSearch | HyperOptSearch = Field(
        default_factory=RandomSearch, discriminator="type", description="How the values of a trial are chosen."
    )
    scheduler: NoScheduler | ASHA | HyperBand | MedianStopping | PopulationBased = Field(
        default_factory=NoScheduler, discriminator="type", description="Which trials stop early."
    )
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig, description="How the best trial is chosen.")

    @model_validator(mode="before")
    @classmethod
    def _flatten_space(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("space"), dict):
            return {**data, "space": flatten_space(data["space"])}
        return data

    @model_validator(mode="after")
    def _keys_may_be_searched(self) -> TuneConfig:
        for key in self.space:
            section = key.split(".")[0]
            if key == "run.dir":
                raise ValueError("space: run.dir cannot be searched (each trial has its own); remove it")
            if section in NOT_SEARCHABLE:
                raise ValueError(f"space: {key} cannot be searched ({NOT_SEARCHABLE[section]}); remove it")
            if key == "num_steps" and not isinstance(self.scheduler, NoScheduler):
                raise ValueError(
                    f"space: scheduler {self.scheduler.type} compares trials at equal steps, so num_steps cannot be "
                    "searched; remove it, or take scheduler none"
                )
            if isinstance(self.scheduler, PopulationBased) and (section == "model" or key == "run.seed"):
                raise ValueError(f"space: pbt cannot change {key} during a training; search it without pbt")
        return self

    @model_validator(mode="after")
    def _parts_fit_together(self) -> TuneConfig:
        grids = [key for key, d in self.space.items() if isinstance(d, Grid)]
        if grids and not isinstance(self.searcher, RandomSearch):
            raise ValueError(
                f"space: {grids[0]} is a grid, which searcher {self.searcher.type} does not support; take type: "
                "choice, or searcher random"
            )
        if isinstance(self.scheduler, PopulationBased):
            if not isinstance(self.searcher, RandomSearch):
                raise ValueError(
                    f"searcher: pbt draws and changes the values itself; take random instead of {self.searcher.type}"
                )
            if self.num_samples < 2:
                raise ValueError(f"num_samples: {self.num_samples}, and pbt needs at least 2 trials")
        return self

    @property
    def num_trials(self) -> int:
        """How many trials the search has: num_samples of each combination of grids."""
        grids = [len(d.values) for d in self.space.values() if isinstance(d, Grid)]
        return self.num_samples * math.prod(grids)


class Search(Section):
    """A search: its base job without run directory and cluster, and the section `tune:`.

    A run directory holds one search; another one is refused there.
    """

    job: Literal["tune"] = "tune"
    run: RunConfig
    cluster: ClusterConfig
    base: dict[str, Any]
    tune: TuneConfig


def flatten_space(space: dict[str, Any]) -> dict[str, Any]:
    """``space`` with nested keys as dotted ones: {"learner": {"lr": D}} is {"learner.lr": D} for a distribution D.

    A nested key that ends in no distribution changes one that is there: {"learner.lr": D, "learner": {"lr": {"high":
    1}}} is D with another bound. So `tune.space.learner.lr.high=1` works on the command line.
    """
    flat: dict[str, Any] = {key: node for key, node in space.items() if _is_distribution(node)}

    def add(node: Any, path: str) -> None:
        if not isinstance(node, dict) or _is_distribution(node):
            flat[path] = node
        elif path in flat:
            flat[path] = {**flat[path], **node}
        else:
            for key, child in node.items():
                add(child, f"{path}.{key}")

    for key, node in space.items():
        if not _is_distribution(node):
            add(node, str(key))
    return flat


def _is_distribution(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("type"), str)


def values_to_check(space: Mapping[str, Distribution], num_random: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    """Values of all keys to check a space with, before any trial starts.

    Each key's extremes in turn, while the other keys have their first one; then ``num_random`` random draws.
    """
    rng = random.Random(seed)
    first = {key: distribution.extremes()[0] for key, distribution in space.items()}
    extremes = [{**first, key: value} for key, distribution in space.items() for value in distribution.extremes()]
    draws = [{key: distribution.draw(rng) for key, distribution in space.items()} for _ in range(num_random)]
    return extremes + draws
