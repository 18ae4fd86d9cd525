"""A search: trials of one training under Ray Tune. The same command on its run directory continues it."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console

from ..actors.placement import cluster_nodes
from ..actors.session import SUBMITTED, Stop, check_run_dir, check_shared, ray_session, stop_on_signals
from ..config import Search, TuneConfig, parse, set_values
from ..config.tune import values_to_check
from ..jobs import preflight
from ..run.directory import RunDir
from ..run.outcome import Failed, Stopped
from .objective import SearchObjective, base_job, job_tree, search_objective
from .output import print_results, summary, write_results
from .results import summarise, trial_results
from .trial import Trials, num_evaluations, run_trial
from .tuner import check_hyperband, require_searcher, tune_scheduler, tune_searcher

TUNE_ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of the job mean what they mean to `train`
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # Progress prints what matters
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # StopWhenRequested interrupts Tune
    "TUNE_GLOBAL_CHECKPOINT_S": "5",  # a driver that is killed loses at most so many seconds of the search's state
}


def run_search(search: Search, console: Console) -> None:
    """Runs a search, or continues the one in its run directory, and prints and writes its results.

    Raises BadInput (nothing has run yet), Failed (no trial is the best), Stopped, or what went wrong.
    """
    objective = search_objective(search)
    check_run_dir(search.run.dir, submitted=SUBMITTED in os.environ)
    require_searcher(search.tune.searcher.type)
    job = base_job(search)
    check_hyperband(search.tune, num_evaluations(job, job.num_steps))
    with stop_on_signals() as stop, RunDir(search) as run:
        trials = Trials(
            tree=job_tree(search),
            directory=run.path / "trials",
            objective=objective,
            max_concurrent=search.tune.max_concurrent,
            run_id=run.id,
        )
        for values in values_to_check(search.tune.space):
            preflight.check_job(parse(set_values(dict(trials.tree), values), "tune"))
        # Under `ray job submit` the working directory may be removed: two raylets on one machine unpack the same one.
        with ray_session(search.cluster), stop.deferred(), contextlib.chdir(run.path):
            check_shared(run.path)
            console.print(f"search: {objective.describe()}; {_describe(search.tune)}")
            tried = trial_results(run_trials(search, trials), trials, job.num_steps)
        num_unfinished = sum(trial.state == "unfinished" for trial in tried)
        if stop.requested or num_unfinished or len(tried) < search.tune.num_trials:
            raise Stopped("stopped; the same command continues the search")
        results = summarise(tried, search, objective)
        print_results(results, run.path, console)
        write_results(results, search, run.path, console)
        run.record("finished", results=summary(results))
        console.print(f"run directory: {run.path}")
    if results.why is not None:
        raise Failed(results.why)


def run_trials(search: Search, trials: Trials) -> tune.ResultGrid:
    """Runs the trials that are not finished. Ray Tune keeps its state in RUN/search. Raises BadInput."""
    os.environ.update({key: value for key, value in TUNE_ENVIRONMENT.items() if key not in os.environ})
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    # Tune's advice to reuse the actors of trials: a trial's own workers would not survive that.
    warnings.filterwarnings("ignore", message="Consider boosting PBT")
    random.seed(search.run.seed)  # Population Based Training draws from it
    nodes = cluster_nodes()
    trials.directory.mkdir(exist_ok=True)
    trials.placement_group(values_to_check(search.tune.space)[0], nodes)  # raises before anything starts

    def trainable(values: dict[str, Any]) -> None:
        run_trial(trials, values)

    placed = tune.with_resources(trainable, lambda values: trials.placement_group(values, nodes))
    state = trials.directory.parent / "search"
    if tune.Tuner.can_restore(str(state)):
        print(f"continuing the search in {state.parent}", flush=True)
        tuner = tune.Tuner.restore(str(state), placed, resume_unfinished=True, resume_errored=True)
    else:
        tuner = _new_tuner(placed, search, trials.objective, state)
    return tuner.fit()


def _new_tuner(trainable: Any, search: Search, objective: SearchObjective, state: Path) -> tune.Tuner:
    config, searcher = search.tune, tune_searcher(search.tune, objective, search.run.seed)
    return tune.Tuner(
        trainable,
        param_space=searcher.space,
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=config.num_samples,
            search_alg=searcher.algorithm,
            max_concurrent_trials=searcher.max_concurrent,
            scheduler=tune_scheduler(config, base_job(search)),
        ),
        run_config=tune.RunConfig(
            name=state.name,
            storage_path=str(state.parent),
            verbose=0,
            callbacks=[Progress(objective), StopWhenRequested()],
            failure_config=tune.FailureConfig(max_failures=config.max_failures),
        ),
    )


class StopWhenRequested(tune.Callback):
    """Interrupts Ray Tune after the session got SIGTERM, SIGINT or SIGHUP.

    Tune saves its state and leaves running trials unfinished, so that they can be continued, only if its own signal
    handler was called. It listens to SIGUSR1, and to SIGINT, whose handler would take the place of the session's. A
    Stopper would end the trials for good. The callback has no state because Tune pickles it with the search.
    """

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Ray Tune's hook, which runs in the main thread a few times a second."""
        stop = signal.getsignal(signal.SIGTERM)
        if isinstance(stop, Stop) and stop.requested:
            signal.raise_signal(signal.SIGUSR1)


class Progress(tune.Callback):
    """Prints a line for each evaluation of a trial, and one when a trial ends."""

    def __init__(self, objective: SearchObjective) -> None:
        self.objective = objective

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: Mapping[str, Any], **info: Any
    ) -> None:
        """Ray Tune's hook."""
        if "step" not in result:
            return
        metric, value = self.objective.metric, self.objective.metric_value(result)
        costs = "  ".join(f"{name} {result[name]:.3f}" for name in self.objective.costs)
        print(f"{result['run']} step {result['step']}: {metric} {value:.3f}  {costs}", flush=True)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Ray Tune's hook."""
        print(f"{trial.trial_id} ended at step {trial.last_result.get('step', 0)}", flush=True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Ray Tune's hook."""
        print(f"{trial.trial_id} failed", flush=True)


def _describe(config: TuneConfig) -> str:
    return (
        f"{config.num_trials} trials over {', '.join(config.space)}, {config.max_concurrent} at a time "
        f"(searcher {config.searcher.type}, scheduler {config.scheduler.type})"
    )
