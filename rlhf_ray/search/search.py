"""A search: trials of one training under Ray Tune, and what came of them. The same command on its run directory goes on with it."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import random
import signal
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import schedulers
from ray.tune.search.basic_variant import BasicVariantGenerator
from rich.console import Console

from ..actors.placement import cluster_nodes
from ..actors.session import Stop, check_run_dir, check_shared, ray_session
from ..config import BadInput, Search, TuneConfig, parse, set_values
from ..config.tune import (
    ASHA,
    Choice,
    Grid,
    HyperBand,
    LogUniform,
    MedianStopping,
    PopulationBased,
    QUniform,
    RandInt,
    samples,
)
from ..jobs import preflight
from ..jobs.pipeline import SUBMITTED
from ..run.directory import RunDir
from ..run.outcome import Failed, Stopped
from . import results as findings
from .objective import Aim, aim, base_job, tree
from .trial import AT, Trials, evaluations, train

SETTINGS = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of the job mean what they mean to `train`
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # Progress says it all
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours knows that the search was stopped: Tune says all of its trials are done
    "TUNE_GLOBAL_CHECKPOINT_S": "5",  # a driver that was killed loses so much of the search
}


def run(search: Search, console: Console) -> None:
    """Runs a search, or goes on with the one in its run directory, and says what came of it.

    Raises BadInput (nothing has run yet), Failed (no trial is worth anything), Stopped, or what went wrong.
    """
    wanted = aim(search)
    check_run_dir(search.run.dir, submitted=SUBMITTED in os.environ)
    if search.tune.searcher.type != "random":
        _require(search.tune.searcher.type)
    job = base_job(search)
    _check_brackets(search.tune, evaluations(job, job.num_steps))
    with RunDir(search) as held:
        trials = Trials(tree(search), held.path / "trials", wanted, search.tune.max_concurrent, held.id)
        for values in samples(search.tune.space, 0, 0):
            preflight.check(parse(set_values(dict(trials.tree), values), "tune"))
        # Under `ray job submit` each raylet unpacks the working directory, and two of one machine the same one: not to be stood in.
        with ray_session(search.cluster) as stop, contextlib.chdir(held.path):
            check_shared(held.path)
            console.print(f"search: {wanted.words()}; {_size(search.tune)}")
            rows = findings.rows(fit(search, trials, held.path, stop), trials, job.num_steps)
        left = sum(row.state == "unfinished" for row in rows)
        if stop.requested or left or len(rows) < _count(search.tune):
            raise Stopped("stopped; the same command goes on with the search")
        results = findings.conclude(rows, search, wanted, held.path, console)
        held.record("finished", results=results)
        console.print(f"run directory: {held.path}")
    if results["best"] is None:
        raise Failed(str(results["why"]))


def fit(search: Search, trials: Trials, directory: Path, stop: Stop) -> tune.ResultGrid:
    """Runs the trials that are not done. Ray Tune's own state lies in RUN/search."""
    os.environ.update({key: value for key, value in SETTINGS.items() if key not in os.environ})
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    warnings.filterwarnings(
        "ignore", message="Consider boosting PBT"
    )  # which a trial's own processes would not outlive
    random.seed(search.run.seed)  # Population Based Training draws from it
    there = cluster_nodes()
    trials.directory.mkdir(exist_ok=True)

    def trainable(config: dict[str, Any]) -> None:
        train(trials, config)

    placed = tune.with_resources(trainable, lambda config: trials.group(config, there))
    trials.group(samples(search.tune.space, 0, 0)[0], there)  # refuses what cannot be placed, before anything starts
    store = directory / "search"
    if tune.Tuner.can_restore(str(store)):
        print(f"going on with the search in {directory}", flush=True)
        tuner = tune.Tuner.restore(str(store), placed, resume_unfinished=True, resume_errored=True)
    else:
        tuner = _tuner(placed, search, trials.aim, store)
    both = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in both}

    def end(number: int, frame: Any) -> None:
        stop(number, frame)
        signal.raise_signal(signal.SIGUSR1)  # which Tune listens to: it saves its state and ends

    for number in both:
        signal.signal(number, end)
    try:
        return tuner.fit()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tuner(placed: Any, search: Search, wanted: Aim, store: Path) -> tune.Tuner:
    config, space = search.tune, {key: domain(d) for key, d in search.tune.space.items()}
    algorithm, concurrent, space = _searcher(config, space, wanted, search.run.seed)
    return tune.Tuner(
        placed,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="score", mode="max", num_samples=config.num_samples, search_alg=algorithm,
            max_concurrent_trials=concurrent, scheduler=scheduler(config, base_job(search)),
        ),
        run_config=tune.RunConfig(
            name=store.name, storage_path=str(store.parent), verbose=0, callbacks=[Progress(wanted)],
            failure_config=tune.FailureConfig(max_failures=config.max_failures),
        ),
    )  # fmt: skip


def domain(d: Any) -> Any:
    """A distribution as Ray Tune's."""
    if isinstance(d, Grid):
        return tune.grid_search(d.values)
    if isinstance(d, Choice):
        return tune.choice(d.values)
    if isinstance(d, RandInt):
        return tune.randint(d.low, d.high)
    if isinstance(d, QUniform):
        return tune.quniform(d.low, d.high, d.q)
    return tune.loguniform(d.low, d.high) if isinstance(d, LogUniform) else tune.uniform(d.low, d.high)


def _searcher(
    config: TuneConfig, space: dict[str, Any], wanted: Aim, seed: int
) -> tuple[Any, int | None, dict[str, Any]]:
    """The searcher, the limit of concurrent trials where it has none itself, and the space that is left to Tune."""
    if config.searcher.type == "optuna":
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if config.searcher.pareto:
            axes = ["quality", *wanted.spent]
            modes = ["max", *("min" for _ in wanted.spent)]
            return OptunaSearch(space, metric=axes, mode=modes, seed=seed), config.max_concurrent, {}
        return OptunaSearch(seed=seed), config.max_concurrent, space
    if config.searcher.type == "hyperopt":
        from ray.tune.search.hyperopt import HyperOptSearch

        first = min(20, max(4, config.num_samples // 4))  # random draws before the model of the space is trusted
        return HyperOptSearch(random_state_seed=seed, n_initial_points=first), config.max_concurrent, space
    return BasicVariantGenerator(random_state=seed, max_concurrent=config.max_concurrent), None, space


def scheduler(config: TuneConfig, job: Any) -> Any:
    """Ray Tune's scheduler. Time is the job's steps; one more than there are, so that a trial's last report comes with its model."""
    chosen, every, end = config.scheduler, job.evaluate.every, job.num_steps + 1
    if isinstance(chosen, ASHA):
        grace = min(chosen.grace or every, job.num_steps)
        return schedulers.ASHAScheduler(
            time_attr="step", max_t=end, grace_period=grace, reduction_factor=chosen.reduction_factor
        )
    if isinstance(chosen, HyperBand):
        # Time is evaluations: in steps the first bracket, which stops nobody, would take more trials. A bracket's last rung lies
        # before the job's end, and its best goes on to there.
        rounds = evaluations(job, job.num_steps)
        return schedulers.HyperBandScheduler(
            time_attr="evaluation", max_t=rounds, reduction_factor=chosen.reduction_factor, stop_last_trials=False
        )
    if isinstance(chosen, MedianStopping):
        return schedulers.MedianStoppingRule(
            time_attr="step", grace_period=chosen.grace or every, min_samples_required=chosen.min_trials
        )
    if isinstance(chosen, PopulationBased):
        lists = {key: d.values if isinstance(d, Choice) else domain(d) for key, d in config.space.items()}
        return schedulers.PopulationBasedTraining(
            time_attr=AT, perturbation_interval=chosen.every or every, hyperparam_mutations=lists, require_attrs=False,
            quantile_fraction=chosen.quantile, resample_probability=chosen.resample, synch=chosen.synchronous,
            custom_explore_fn=_inside(config), log_config=False,
        )  # fmt: skip
    return schedulers.FIFOScheduler()


def _inside(config: TuneConfig) -> Any:
    """Keeps what was multiplied by 0.8 or 1.2 inside the space."""
    space = config.space

    def explore(values: dict[str, Any]) -> dict[str, Any]:
        return {key: space[key].clip(value) for key, value in values.items()}

    return explore


class Progress(tune.Callback):
    """A line for each evaluation of a trial, and one where a trial ends."""

    def __init__(self, wanted: Aim) -> None:
        self.aim = wanted

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: Mapping[str, Any], **info: Any
    ) -> None:
        """Ray Tune's hook."""
        if "step" not in result:
            return
        shown = "  ".join(f"{name} {result[name]:.3f}" for name in self.aim.spent)
        print(
            f"{result['run']} step {result['step']}: {self.aim.metric} {self.aim.sign * result['quality']:.3f}  {shown}",
            flush=True,
        )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Ray Tune's hook."""
        print(f"{trial.trial_id} ended at step {trial.last_result.get('step', 0)}", flush=True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Ray Tune's hook."""
        print(f"{trial.trial_id} failed", flush=True)


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise BadInput(f"tune.searcher: {package} is not installed; pip install 'rlhf-ray[{package}]', or take random")


def _check_brackets(config: TuneConfig, rounds: int) -> None:
    """HyperBand fills a bracket that runs all to their end first, and Ray Tune takes it for open again when its trials are over."""
    if isinstance(config.scheduler, HyperBand):
        first = round(math.log(rounds) / math.log(config.scheduler.reduction_factor)) + 1
        if config.max_concurrent <= first:
            raise BadInput(
                f"tune.max_concurrent: {config.max_concurrent} at a time would all run to their end, since HyperBand's first bracket "
                f"takes {first} trials and stops none; set it to {first + 1} or more, or take asha"
            )


def _count(config: TuneConfig) -> int:
    grids = [len(d.values) for d in config.space.values() if isinstance(d, Grid)]
    count = config.num_samples
    for n in grids:
        count *= n
    return count


def _size(config: TuneConfig) -> str:
    return (
        f"{_count(config)} trials over {', '.join(config.space)}, {config.max_concurrent} at a time "
        f"(searcher {config.searcher.type}, scheduler {config.scheduler.type})"
    )
