"""The section `tune:` of a job file: which keys are searched, from what, how, and what is best. No part of the job itself."""

from __future__ import annotations

import math
import random
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .run import ClusterConfig, RunConfig
from .section import Section

Scalar = bool | int | float | str | None


class Choice(Section):
    """One of some values, each as likely."""

    type: Literal["choice"] = "choice"
    values: list[Scalar] = Field(..., min_length=1, description="The values.")

    def draw(self, rng: random.Random) -> Any:
        """A value at random."""
        return rng.choice(self.values)

    def ends(self) -> list[Any]:
        """The values whose checks say most about all others."""
        return [*self.values]

    def clip(self, value: Any) -> Any:
        """The value that is allowed and nearest to ``value``."""
        return value


class Grid(Choice):
    """Each of some values; several keys with grids are tried in all combinations."""

    type: Literal["grid"] = "grid"  # type: ignore[assignment]


class Uniform(Section):
    """A number between two."""

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

    def ends(self) -> list[Any]:
        """The lowest and the highest value."""
        return [self.low, self.high]

    def clip(self, value: Any) -> Any:
        """The value that is allowed and nearest to ``value``."""
        return min(max(value, self.low), self.high)


class LogUniform(Uniform):
    """A number between two whose logarithm is uniform: for learning rates and coefficients."""

    type: Literal["loguniform"] = "loguniform"  # type: ignore[assignment]
    low: float = Field(..., gt=0, description="The lowest value.")

    def draw(self, rng: random.Random) -> Any:
        """A value at random."""
        return math.exp(rng.uniform(math.log(self.low), math.log(self.high)))


class QUniform(Uniform):
    """A multiple of q between two numbers."""

    type: Literal["quniform"] = "quniform"  # type: ignore[assignment]
    q: float = Field(..., gt=0, description="What values are multiples of.")

    @model_validator(mode="after")
    def _multiples(self) -> QUniform:
        if any(abs(end / self.q - round(end / self.q)) > 1e-6 for end in (self.low, self.high)):
            raise ValueError(f"low = {self.low:g} and high = {self.high:g} are to be multiples of q = {self.q:g}")
        return self

    def draw(self, rng: random.Random) -> Any:
        """A value at random."""
        return round(super().draw(rng) / self.q) * self.q


class RandInt(Section):
    """A whole number."""

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

    def ends(self) -> list[Any]:
        """The lowest and the highest value."""
        return [self.low, self.high - 1]

    def clip(self, value: Any) -> Any:
        """The value that is allowed and nearest to ``value``."""
        return min(max(int(value), self.low), self.high - 1)


Distribution = Annotated[Choice | Grid | Uniform | LogUniform | QUniform | RandInt, Field(discriminator="type")]


class RandomSearch(Section):
    """Independent draws, and every combination of grids."""

    type: Literal["random"] = "random"


class OptunaSearch(Section):
    """Optuna's tree of Parzen estimators (extra: optuna)."""

    type: Literal["optuna"] = "optuna"
    pareto: bool = Field(
        False, description="Look for the whole front of metric, KL and length instead of the best within the budget."
    )


class HyperOptSearch(Section):
    """HyperOpt's tree of Parzen estimators (extra: hyperopt)."""

    type: Literal["hyperopt"] = "hyperopt"


class NoScheduler(Section):
    """Every trial runs to its end."""

    type: Literal["none"] = "none"


class ASHA(Section):
    """Asynchronous successive halving (Li et al., 2018): at each rung only the best go on."""

    type: Literal["asha"] = "asha"
    grace: int | None = Field(None, ge=1, description="Steps before a trial may be stopped; none: evaluate.every.")
    reduction_factor: float = Field(3.0, gt=1, description="One trial in so many goes on at each rung.")


class HyperBand(Section):
    """HyperBand (Li et al., 2016): trials wait for each other at each rung, and the best go on from their checkpoints."""

    type: Literal["hyperband"] = "hyperband"
    reduction_factor: float = Field(3.0, gt=1, description="One trial in so many goes on at each rung.")


class MedianStopping(Section):
    """A trial whose best is below the median of the others' running means is stopped (Golovin et al., 2017)."""

    type: Literal["median"] = "median"
    grace: int | None = Field(None, ge=1, description="Steps before a trial may be stopped; none: evaluate.every.")
    min_trials: int = Field(3, ge=1, description="Trials that the median needs.")


class PopulationBased(Section):
    """Population Based Training (Jaderberg et al., 2017): the worst go on from a checkpoint of the best, with keys changed."""

    type: Literal["pbt"] = "pbt"
    every: int | None = Field(None, ge=1, description="Steps between such exchanges; none: evaluate.every.")
    quantile: float = Field(0.25, gt=0, le=0.5, description="Share of the trials that counts as best, and as worst.")
    synchronous: bool = Field(
        False, description="All trials wait for each other at an exchange, which makes it independent of their speed."
    )
    resample: float = Field(
        0.25, ge=0, le=1, description="Chance that a key is drawn anew instead of multiplied by 0.8 or 1.2."
    )


class ObjectiveConfig(Section):
    """What is best. Of ppo never the reward alone: a policy that breaks the KL budget is not chosen, whatever its reward."""

    metric: str | None = Field(
        None,
        description="Held-out metric to be high, '-' before it where less is better; none: reward of ppo, else evaluate.best.",
    )
    max_kl: float | None = Field(
        None, gt=0, description="Of ppo, which needs it: most KL to the reference, in nats a held-out answer."
    )
    max_length: float | None = Field(None, gt=0, description="Of ppo: most tokens of a held-out answer, on average.")


FIXED = {
    "job": "a search is over one job", "cluster": "they share it", "log": "it changes no result",
    "checkpoint": "it changes no result", "evaluate": "what measures them must not change", "tune": "it is the search",
    "stages": "a search is over one training",
}  # fmt: skip


class TuneConfig(Section):
    """The search. `train` checks this section and leaves it alone."""

    space: dict[str, Distribution] = Field(..., min_length=1, description="Dotted key of the job: its distribution.")
    num_samples: int = Field(10, ge=1, description="Trials; with grids, of each combination.")
    max_concurrent: int = Field(
        1, ge=1, description="Trials at a time; each plans its workers on so small a share of every node's CPUs."
    )
    max_failures: int = Field(1, ge=0, description="How often a trial that failed goes on from its last checkpoint.")
    searcher: RandomSearch | OptunaSearch | HyperOptSearch = Field(
        default_factory=RandomSearch, discriminator="type", description="Where values come from."
    )
    scheduler: NoScheduler | ASHA | HyperBand | MedianStopping | PopulationBased = Field(
        default_factory=NoScheduler, discriminator="type", description="Which trials go on."
    )
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig, description="What is best.")

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("space"), dict):
            return {**data, "space": flatten(data["space"])}
        return data

    @model_validator(mode="after")
    def _searchable(self) -> TuneConfig:
        for key in self.space:
            first = key.split(".")[0]
            if first in FIXED or key == "run.dir":
                raise ValueError(f"space: {key} is the same in all trials ({FIXED.get(first, 'each has its own')})")
            if key == "num_steps" and not isinstance(self.scheduler, NoScheduler):
                raise ValueError(
                    f"space: scheduler {self.scheduler.type} compares trials by their steps, so num_steps is fixed"
                )
            if isinstance(self.scheduler, PopulationBased) and (first == "model" or key == "run.seed"):
                raise ValueError(f"space: pbt changes {key} of a training that goes on; search it without pbt")
        return self

    @model_validator(mode="after")
    def _fits(self) -> TuneConfig:
        grids = [key for key, d in self.space.items() if isinstance(d, Grid)]
        if grids and not isinstance(self.searcher, RandomSearch):
            raise ValueError(
                f"space: {grids[0]} is a grid, which searcher {self.searcher.type} knows not; take choice, or random"
            )
        if isinstance(self.scheduler, PopulationBased):
            if not isinstance(self.searcher, RandomSearch):
                raise ValueError(
                    f"searcher: pbt draws and changes keys itself, so {self.searcher.type} has no say; take random"
                )
            if self.num_samples < 2:
                raise ValueError("num_samples: pbt needs two trials at least")
        return self


class Search(Section):
    """A job without its run directory and cluster, and the search around it: what a search's run directory is held to."""

    job: Literal["tune"] = "tune"
    run: RunConfig
    cluster: ClusterConfig
    base: dict[str, Any]
    tune: TuneConfig


def flatten(space: dict[str, Any]) -> dict[str, Any]:
    """``space`` with nested keys dotted (`learner: {lr: ...}` is `learner.lr`); ones without a type change a key that is there, so
    that `tune.space.learner.lr.high=0.01` on the command line does what it says."""
    found: dict[str, Any] = {k: v for k, v in space.items() if _distribution(v)}

    def walk(node: Any, path: str) -> None:
        if isinstance(node, dict) and not _distribution(node):
            if path in found:
                found[path] = {**found[path], **node}
            else:
                for key, value in node.items():
                    walk(value, f"{path}.{key}" if path else str(key))
        else:
            found[path] = node

    for key, value in space.items():
        if not _distribution(value):
            walk(value, str(key))
    return found


def _distribution(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("type"), str)


def samples(space: dict[str, Any], count: int, seed: int) -> list[dict[str, Any]]:
    """Values to check a space with: each key's ends while the others are at their first, and ``count`` random draws."""
    rng = random.Random(seed)
    first = {key: d.ends()[0] for key, d in space.items()}
    one_by_one = [{**first, key: end} for key, d in space.items() for end in d.ends()]
    return one_by_one + [{key: d.draw(rng) for key, d in space.items()} for _ in range(count)]
