"""Ray Tune's own objects for the `tune:` section: distributions, searchers and schedulers."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ray import tune
from ray.tune import schedulers
from ray.tune.search.basic_variant import BasicVariantGenerator

from ..config import BadInput, TrainingJob, TuneConfig
from ..config.tune import (
    ASHA,
    Choice,
    Distribution,
    Grid,
    HyperBand,
    LogUniform,
    MedianStopping,
    NoScheduler,
    PopulationBased,
    QUniform,
    RandInt,
    Uniform,
)
from .objective import SearchObjective
from .trial import PBT_STEP, num_evaluations


class Searcher(NamedTuple):
    """Ray Tune's searcher; the limit of concurrent trials, if it has none itself; and the space that Tune draws from."""

    algorithm: Any
    max_concurrent: int | None
    space: dict[str, Any]


def tune_distribution(distribution: Distribution) -> Any:
    """A distribution of the space as Ray Tune's."""
    match distribution:
        case Grid() as d:
            return tune.grid_search(d.values)
        case Choice() as d:
            return tune.choice(d.values)
        case RandInt() as d:
            return tune.randint(d.low, d.high)
        case QUniform() as d:
            return tune.quniform(d.low, d.high, d.q)
        case LogUniform() as d:
            return tune.loguniform(d.low, d.high)
        case Uniform() as d:
            return tune.uniform(d.low, d.high)


def tune_searcher(config: TuneConfig, objective: SearchObjective, seed: int) -> Searcher:
    """The searcher of a search. Its package is installed: see require_searcher."""
    space = {key: tune_distribution(distribution) for key, distribution in config.space.items()}
    if config.searcher.type == "optuna":
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if config.searcher.pareto:
            metrics = ["quality", *objective.costs]
            modes = ["max", *("min" for _ in objective.costs)]
            return Searcher(OptunaSearch(space, metric=metrics, mode=modes, seed=seed), config.max_concurrent, {})
        return Searcher(OptunaSearch(seed=seed), config.max_concurrent, space)
    if config.searcher.type == "hyperopt":
        from ray.tune.search.hyperopt import HyperOptSearch

        num_random = min(20, max(4, config.num_samples // 4))  # draws before the model of the space is used
        hyperopt = HyperOptSearch(random_state_seed=seed, n_initial_points=num_random)
        return Searcher(hyperopt, config.max_concurrent, space)
    return Searcher(BasicVariantGenerator(random_state=seed, max_concurrent=config.max_concurrent), None, space)


def tune_scheduler(config: TuneConfig, job: TrainingJob) -> Any:
    """The scheduler of a search, which sees a trial's results by their ``step``.

    The last step is one more than a job has. So a trial is never stopped at its end, when its model is exported.
    """
    every, last_step = job.evaluate.every, job.num_steps + 1
    match config.scheduler:
        case NoScheduler():
            return schedulers.FIFOScheduler()
        case ASHA() as asha:
            grace = min(asha.grace or every, job.num_steps)
            return schedulers.ASHAScheduler(
                time_attr="step", max_t=last_step, grace_period=grace, reduction_factor=asha.reduction_factor
            )
        case HyperBand() as hyperband:
            # Rungs are counted in evaluations: counted in steps, the first bracket, which stops nobody, would take more
            # trials. The last rung of a bracket is before the job's end, and its best trial continues to the end.
            return schedulers.HyperBandScheduler(
                time_attr="evaluation",
                max_t=num_evaluations(job, job.num_steps),
                reduction_factor=hyperband.reduction_factor,
                stop_last_trials=False,
            )
        case MedianStopping() as median:
            return schedulers.MedianStoppingRule(
                time_attr="step", grace_period=median.grace or every, min_samples_required=median.min_trials
            )
        case PopulationBased() as pbt:
            mutations = {
                key: distribution.values if isinstance(distribution, Choice) else tune_distribution(distribution)
                for key, distribution in config.space.items()
            }
            return schedulers.PopulationBasedTraining(
                time_attr=PBT_STEP,
                perturbation_interval=pbt.every or every,
                hyperparam_mutations=mutations,
                quantile_fraction=pbt.quantile,
                resample_probability=pbt.resample,
                synch=pbt.synchronous,
                custom_explore_fn=clip_to_space(config.space),
                require_attrs=False,
                log_config=False,
            )


def clip_to_space(space: Mapping[str, Distribution]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that keeps values inside the space after Population Based Training multiplied them by 0.8 or 1.2."""

    def clip(values: dict[str, Any]) -> dict[str, Any]:
        return {key: space[key].clip(value) for key, value in values.items()}

    return clip


def require_searcher(searcher: str) -> None:
    """Raises BadInput if the package of a searcher is not installed."""
    if searcher != "random" and importlib.util.find_spec(searcher) is None:
        raise BadInput(
            f"tune.searcher: {searcher} is not installed; pip install 'rlhf-ray[{searcher}]', or take searcher random"
        )


def check_hyperband(config: TuneConfig, num_rungs: int) -> None:
    """Raises BadInput if HyperBand would stop no trial.

    HyperBand fills the bracket that stops nobody first. If not more trials run at a time than this bracket holds, Ray
    Tune opens it again when its trials end, and all trials join it. Example: 4 rungs and a reduction factor of 3 make a
    first bracket of round(log_3 4) + 1 = 2 trials, so at least 3 must run at a time.
    """
    if not isinstance(config.scheduler, HyperBand):
        return
    first_bracket = round(math.log(num_rungs) / math.log(config.scheduler.reduction_factor)) + 1
    if config.max_concurrent <= first_bracket:
        raise BadInput(
            f"tune.max_concurrent: with {config.max_concurrent} trials at a time HyperBand would stop none, because its "
            f"first bracket of {first_bracket} runs to the end; set it to {first_bracket + 1} or more, or take asha"
        )
