"""Running a job: a single one in its run directory, or stages in order, each in its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from ..actors.session import Stop, check_run_dir, check_shared, ray_session
from ..config import EvaluateJob, PipelineJob, RLJob, SampleJob, ScoreJob, TokenizerJob, parse
from ..config.jobs import STAGE
from ..report.evaluations import compare_first_and_last, comparison_tables, stage_results, stage_table
from ..run.directory import RunDir
from ..run.events import notice
from ..run.outcome import Watch, failing, unwatched
from ..run.usage import read_stage_usage, sum_usage
from ..train.rl import RL
from ..train.setup import setup
from ..train.supervised import SupervisedRun
from . import evaluate, lineage, preflight, sample, score, tokenizer

SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the entrypoint of a submitted job


def run(job: Any, console: Console) -> None:
    """Runs a job in a Ray session of its own (or the cluster it is told to join).

    Raises BadInput (nothing has run yet), Failed (something has), Stopped (a checkpoint was written), or what went wrong.
    """
    check_run_dir(job.run.dir, submitted=SUBMITTED in os.environ)
    with RunDir(job) as held:
        preflight.check(job)
        with ray_session(job.cluster) as stop:
            check_shared(held.path)
            if isinstance(job, PipelineJob):
                pipeline(job, held, stop, console)
            else:
                held.record("running", resources=ray.cluster_resources())
                single(job, held, stop, console)
        held.record("finished")
        console.print(f"run directory: {held.path}")


def single(job: Any, held: RunDir, stop: Stop, console: Console, watch: Watch = unwatched) -> dict[str, Any]:
    """One job in its run directory; returns its results, which the manifest keeps too. ``watch`` sees the evaluations of a training."""
    if isinstance(job, RLJob):
        with setup(job, held.path, notice) as made:
            rl = RL(job, held, made, stop, watch)
            with failing(lambda: rl.step > 0):
                rl.train()
        results: dict[str, Any] = {}
        if (comparison := compare_first_and_last(held.path)) is not None:
            for table in comparison_tables(comparison, job.evaluate.num_shown):
                console.print(table)
            results = {name: vars(difference) for name, difference in comparison.differences.items()}
    elif isinstance(job, EvaluateJob):
        results = evaluate.run(job, held, console)
    elif isinstance(job, SampleJob):
        results = sample.run(job, held, console)
    elif isinstance(job, ScoreJob):
        results = score.run(job, held, console)
    elif isinstance(job, TokenizerJob):
        results = tokenizer.run(job, held, console)
    else:
        run = SupervisedRun(job, held, stop, watch)
        with failing(lambda: run.step > 0):
            results = run.train()
    held.record("finished", results=results)
    return results


def pipeline(job: PipelineJob, held: RunDir, stop: Stop, console: Console) -> None:
    """The stages in order. A finished one is not done again unless its config, its files or a stage before it have changed."""
    results: dict[str, Any] = {}
    trained: list[str] = []
    done: dict[str, str] = {}
    for number, (name, stage) in enumerate(job.stages.items(), 1):
        settled = settle(job, name, stage)
        held.events.at(stage=name)
        console.rule(f"{number}/{len(job.stages)} {name}: {settled.job}")
        made = lineage.trace(settled, held.path, done)
        done[name] = made.outputs
        if (old := lineage.set_aside(held.path / name, made.inputs)) is not None:
            console.print(f"{name} was made of something else: that is now {old}, and it is done again")
        with RunDir(settled, keep_finished=True, parent_id=held.id) as inner:
            if lineage.is_done(inner.manifest, made.outputs):
                console.print(f"{name} is finished already: {inner.path}")
                results[name] = inner.manifest["results"]
            else:
                inner.record("running", inputs=made.inputs, files=made.files)
                with failing(lambda: bool(trained)):
                    results[name] = single(settled, inner, stop, console)
                inner.record("finished", outputs=made.outputs)
                trained.append(name)
                console.print(f"{name}: {inner.manifest['seconds']} s")
    held.record("running", results=results, usage=sum_usage(read_stage_usage(held.path).values()).to_json())
    console.print(stage_table(stage_results(results)))


def settle(job: PipelineJob, name: str, stage: Any) -> Any:
    """The stage as a job of its own: the pipeline's run directory, seed, cluster and log; 'stage:' paths made real."""
    root = Path(job.run.dir).absolute()
    tree = stage.model_dump(mode="json")
    tree["run"] = {"dir": str(root / name), "seed": job.run.seed}
    tree["cluster"] = job.cluster.model_dump(mode="json")
    tree["log"] = {**job.log.model_dump(mode="json"), **stage.log.model_dump(mode="json", exclude_defaults=True)}
    return parse(_replace(tree, root), f"stages.{name}")


def _replace(node: Any, root: Path) -> Any:
    if isinstance(node, dict):
        return {key: _replace(value, root) for key, value in node.items()}
    if isinstance(node, list):
        return [_replace(value, root) for value in node]
    if isinstance(node, str) and node.startswith(STAGE):
        name, _, file = node.removeprefix(STAGE).partition("/")
        return str(root / name / (file or "model"))
    return node
