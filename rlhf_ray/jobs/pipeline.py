"""`job: pipeline`: stages in order, each in a run directory of its own; a finished stage is not done again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import PipelineJob, SingleJob, parse
from ..config.jobs import STAGE
from ..run.directory import RunDir
from ..run.outcome import failing
from ..run.reader import read_manifest
from .kind import JobKind, JobNeeds, Results, RunContext
from .lineage import is_done, set_aside, trace


@dataclass(frozen=True, kw_only=True)
class PipelineKind(JobKind[PipelineJob]):
    """The kind of a pipeline; ``kinds`` are those that a stage may be of, by the value of `job:`."""

    kinds: Mapping[str, JobKind[Any]]

    def is_finished(self, job: PipelineJob) -> bool:
        """Whether every stage is finished and made of what the job names now."""
        outputs: dict[str, str] = {}
        for name, stage in job.stages.items():
            resolved = resolve_stage(job, name, stage)
            lineage = trace(resolved, Path(job.run.dir).absolute(), outputs)
            outputs[name] = lineage.outputs
            manifest = read_manifest(Path(resolved.run.dir))
            if manifest.get("inputs") != lineage.inputs or not is_done(manifest, lineage.outputs):
                return False
        return True


def pipeline_kind(kinds: Mapping[str, JobKind[Any]]) -> PipelineKind:
    """The kind of a pipeline whose stages are of ``kinds``."""

    def describe(job: PipelineJob) -> list[str]:
        return [f"{name}: {line}" for name, stage in job.stages.items() for line in kinds[stage.job].describe(stage)]

    def run(job: PipelineJob, context: RunContext) -> Results:
        return run_stages(job, context, kinds)

    return PipelineKind(
        needs=lambda job: JobNeeds(data={}), describe=describe, run=run, stages=lambda job: job.stages, kinds=kinds
    )


def run_stages(job: PipelineJob, context: RunContext, kinds: Mapping[str, JobKind[Any]]) -> Results:
    """Runs the stages in order; returns the results of each, by its name.

    A finished stage is done again only if its config, its files or a stage before it have changed.
    """
    from ..report.evaluations import stage_results, stage_table
    from ..run.usage import read_stage_usage, sum_usage

    results: Results = {}
    trained: list[str] = []
    outputs: dict[str, str] = {}
    run, console = context.run, context.console
    for number, (name, stage) in enumerate(job.stages.items(), 1):
        resolved = resolve_stage(job, name, stage)
        run.events.at(stage=name)
        console.rule(f"{number}/{len(job.stages)} {name}: {resolved.job}")
        lineage = trace(resolved, run.path, outputs)
        outputs[name] = lineage.outputs
        if (aside := set_aside(run.path / name, lineage.inputs)) is not None:
            console.print(f"{name} was made from other inputs: it is now {aside}, and the stage is done again")
        with RunDir(resolved, keep_finished=True, parent_id=run.id) as stage_run:
            if is_done(stage_run.manifest, lineage.outputs):
                console.print(f"{name} is finished already: {stage_run.path}")
                results[name] = stage_run.manifest["results"]
                continue
            resources = run.manifest.get("resources", {})  # of the session: the stages share it
            stage_run.record("running", inputs=lineage.inputs, files=lineage.files, resources=resources)
            with failing(lambda: bool(trained)):
                stage_context = RunContext(run=stage_run, stop=context.stop, console=console)
                results[name] = kinds[resolved.job].run_and_record(resolved, stage_context)
            stage_run.record("finished", outputs=lineage.outputs)
            trained.append(name)
            console.print(f"{name}: {stage_run.manifest['seconds']} s")
    run.record("running", usage=sum_usage(read_stage_usage(run.path).values()).to_json())
    console.print(stage_table(stage_results(results)))
    return results


def resolve_stage(pipeline: PipelineJob, name: str, stage: SingleJob) -> SingleJob:
    """The stage as a job of its own: with the pipeline's run directory, seed, cluster and log, and real paths for 'stage:NAME'."""
    root = Path(pipeline.run.dir).absolute()
    tree = stage.model_dump(mode="json")
    tree["run"] = {"dir": str(root / name), "seed": pipeline.run.seed}
    tree["cluster"] = pipeline.cluster.model_dump(mode="json")
    tree["log"] = {**pipeline.log.model_dump(mode="json"), **stage.log.model_dump(mode="json", exclude_defaults=True)}
    resolved: SingleJob = parse(_replace(tree, root), f"stages.{name}")
    return resolved


def _replace(node: Any, root: Path) -> Any:
    if isinstance(node, dict):
        return {key: _replace(value, root) for key, value in node.items()}
    if isinstance(node, list):
        return [_replace(value, root) for value in node]
    if isinstance(node, str) and node.startswith(STAGE):
        name, _, file = node.removeprefix(STAGE).partition("/")
        return str(root / name / (file or "model"))
    return node
