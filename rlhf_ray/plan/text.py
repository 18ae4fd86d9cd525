"""What `rlhf-ray plan` says before anything is started: placement, memory, seconds by stage, yes or no, and what would help."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import BadInput, Job, RLJob, SingleJob, Supervised
from ..jobs.kinds import kind_of
from . import forecast, suggestions
from . import requirements as needs
from .forecast import Forecast
from .hardware import GIB, GPUS, Cluster, cluster, this_machine
from .model_shapes import NoEstimate, job_models
from .requirements import Models, Setting

SCALES = (1, 4, 16, 64, 256)
TIGHT = 0.1


@dataclass(frozen=True)
class Answer:
    """The printed lines, and whether the plan says yes (None: no estimate was possible)."""

    lines: list[str]
    yes: bool | None = None


def hardware(gpus: str | None, nodes: int, device: str) -> Cluster:
    """What --gpus names, else this machine's GPUs by nvidia-smi, else its cores, measured."""
    if gpus is not None and device == "cpu":
        raise BadInput(f"--gpus {gpus}: the job says cluster.device=cpu; leave one of them out")
    if gpus is not None:
        return cluster(gpus, nodes)
    found = _local_gpus() if device != "cpu" else None
    return this_machine(nodes) if found is None else replace(found, nodes=nodes)


def _local_gpus() -> Cluster | None:
    if shutil.which("nvidia-smi") is None:
        return None
    line = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    rows = [row.rpartition(",") for row in done.stdout.splitlines() if "," in row]
    if done.returncode or not rows:
        return None
    name, gib = rows[0][0].upper().replace(" ", ""), float(rows[0][2]) / 1024
    fitting = [g for g in GPUS if g.name.split("-")[0] in name and abs(g.memory / GIB - gib) < 8]
    return cluster(f"{len(rows)}x{fitting[0].name}") if fitting else None


def answer(job: Job, on: Cluster, run: str | None = None, scale: bool = False, reward_s: float = 0.0) -> Answer:
    """Everything about a job, or about each stage of a pipeline. ``run`` calibrates; ``scale`` adds larger clusters; a chunk's reward waits
    for ``reward_s``. Raises BadInput."""
    pipeline = kind_of(job).stages(job)
    if not 0 <= reward_s < math.inf:
        raise BadInput(f"--reward-seconds {reward_s:g}: give a finite number of seconds, 0 or more")
    if run is not None and not any(isinstance(stage, RLJob) for stage in pipeline.values()):
        raise BadInput(f"--from {run}: a run calibrates the estimate of a ppo job only; remove --from")
    lines, verdicts = [f"on {_device(on)}"], []
    for name, stage in pipeline.items():
        whole = stage.model_copy(update={"cluster": job.cluster})
        one = _stage(whole, pipeline, on, run, scale, reward_s)
        lines += [f"{name}: {line}" if name else line for line in one.lines]
        verdicts.append(one.yes)
    known = [v for v in verdicts if v is not None]
    return Answer(lines, all(known) if known else None)


def _device(c: Cluster) -> str:
    nodes = f"{c.nodes} nodes of " if c.nodes > 1 else ""
    each = c.device.name if c.device.is_cpu else f"{c.per_node} x {c.device.name}"
    flops = f"{c.device.bf16 / 1e12:.2f} TFLOP/s {'float32, measured now' if c.device.is_cpu else 'bfloat16'}"
    return f"{nodes}{each}: {size(c.device.memory)}, {flops}"


def _stage(
    job: SingleJob, pipeline: Mapping[str, Any], on: Cluster, run: str | None, scale: bool, reward_s: float
) -> Answer:
    lines = kind_of(job).describe(job)
    try:
        models = job_models(job, pipeline)
    except NoEstimate as why:
        return Answer([*lines, f"no estimate: {why}"])
    if models is None:
        return Answer(lines)
    given = Setting(models, on, forecast.lengths(job), reward_s=reward_s)
    lines.append(_sizes(models))
    if run is not None and isinstance(job, RLJob):
        given = forecast.calibrated(given, Path(run), pipeline)
        factors = ", ".join(f"{name} {value:.2f}" for name, value in vars(given.factors).items())
        lines.append(f"calibrated by {run}: measured over predicted seconds: {factors}")
    try:
        found = forecast.forecast(job, given)
    except BadInput as why:
        return Answer([*lines, f"no: {why}"], False)
    lines += [*found.plan.lines(), *_memory(found)]
    if isinstance(job, RLJob):
        lines += [*_time(job, found), *(_scaled(job, found) if scale else ())]
    elif isinstance(job, Supervised) and found.seconds:
        lines.append(
            f"time: {found.seconds['step']:.3g} s a step, {job.num_steps * found.seconds['step'] / 60:.3g} min in all"
        )
    return Answer([*lines, _verdict(found)], found.fits)


def size(count: float) -> str:
    """Bytes as people say them."""
    return f"{count / GIB:.1f} GiB" if abs(count) >= GIB else f"{count / (1 << 20):.0f} MiB"


def _sizes(models: Models) -> str:
    def said(count: int) -> str:
        return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"

    found = [f"model: {models.policy.family}, {said(models.policy.num_parameters)} parameters"]
    if models.critic is not None:
        found.append(f"critic {said(models.critic.scalar_parameters)}")
    return ", ".join(found + [f"reward model {said(s.scalar_parameters)}" for s in models.rewards])


def _memory(f: Forecast) -> Iterator[str]:
    on, cpu = f.given.cluster, f.given.cluster.device.is_cpu
    for role, need in f.needs.items():
        parts = {**need.resident, **need.working, **need.step}
        named = " + ".join(f"{name} {size(v)}" for name, v in parts.items() if v) or "nothing of its own"
        yield f"memory of each {role} worker: {named}; with its process {size(need.stays(cpu) + need.comes(cpu))}"
    generation = kind_of(f.job).needs(f.job).generation
    if generation is not None and generation.rollout.engine.memory_reservation is not None:
        held, max_rows = needs.room(generation, f.given.models, f.needs["rollout"]), generation.rollout.engine.max_rows
        yield f"a rollout worker's KV cache holds {max(0.0, held):.0f} of the longest sequences at once (max_rows {max_rows})"
    turns = " (roles in turns)" if f.plan.colocated and not cpu and getattr(f.job.cluster, "colocate", False) else ""
    yield f"the fullest {'machine' if cpu else 'GPU'}: {size(f.taken)} of {size(on.device.memory)}{turns}" + (
        "" if cpu else f"; host RAM of the fullest node: {size(f.host)} of {size(on.host_memory)}"
    )


def _time(job: RLJob, f: Forecast) -> Iterator[str]:
    seconds = f.seconds
    yield f"response lengths: {f.given.lengths.source}"
    parts = {name: s for name, s in seconds.items() if name != "step" and s >= 0.001}
    named = " + ".join(f"{name} {s:.3g}" for name, s in parts.items())
    tokens = job.rollout.prompts_per_step * job.algorithm.group_size * float(f.given.lengths.responses.mean())
    source = "calibrated" if f.given.factors != needs.Factors() else "from data sheets"
    yield (
        f"time of a step: {named} = {seconds['step']:.3g} s, {tokens / seconds['step']:.4g} generated tokens/s, "
        f"{job.num_steps * seconds['step'] / 3600:.3g} h in all ({source})"
    )
    worst = max(parts, key=lambda name: parts[name])
    better = suggestions.overrides_that_shorten(f)
    helps = (
        "; ".join(f"{override} -> {s:.3g} s" for override, s in better[:3])
        or "none of the usual settings shortens it here"
    )
    yield f"bottleneck: {worst}, {parts[worst] / seconds['step']:.0%} of the step; what helps: {helps}"


def _scaled(job: RLJob, f: Forecast) -> Iterator[str]:
    """The same share of work for each device, on more of them: what long tails and what stays serial cost."""
    yield "on larger clusters, with as many prompts for each worker as now (simulated, an estimate):"
    for times in SCALES:
        on = f.given.cluster
        more = job.model_copy(update={
            "rollout": job.rollout.model_copy(update={
                "prompts_per_step": times * job.rollout.prompts_per_step, "num_workers": times * job.rollout.num_workers,
            }),
            "learner": job.learner.model_copy(update={"num_workers": times * job.learner.num_workers}),
            "rewards": job.rewards.model_copy(update={"num_workers": times * job.rewards.num_workers}),
        })  # fmt: skip
        wide = replace(on, nodes=times * on.nodes)
        lines = []
        for ahead in (0, 1):
            other = more.model_copy(update={"rollout": more.rollout.model_copy(update={"ahead": ahead})})
            step = forecast.forecast(other, replace(f.given, cluster=wide)).seconds["step"]
            lines.append(f"ahead {ahead}: {step:.3g} s")
        yield f"  {times * on.nodes * on.per_node} {'nodes' if on.device.is_cpu else 'GPUs'}: {', '.join(lines)}"


def _verdict(f: Forecast) -> str:
    if f.fits:
        barely = ", which is within what these formulas err by" if f.margin < TIGHT else ""
        return f"yes: it fits, with {f.margin:.0%} to spare{barely}"
    options = suggestions.overrides_that_fit(f)
    helps = (
        f"it would with {' '.join(options)}"
        if options
        else "no setting of this job mends it: more devices, or a smaller model"
    )
    return f"no: it needs {1 - f.margin:.0%} of the memory there is; {helps}"
