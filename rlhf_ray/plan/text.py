"""What `rlhf-ray plan` prints: placement, memory, seconds by stage, yes or no, and what would help."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import BadInput, Job, SingleJob, resolve_dtypes
from ..jobs.kind import Generation, JobNeeds
from ..jobs.kinds import kind_of
from . import forecast, suggestions
from . import requirements as needs
from .forecast import Forecast
from .hardware import GIB, GPUS, Cluster, cluster, this_machine
from .model_shapes import NoEstimate, job_models
from .requirements import Models, Setting
from .stage_memory import GPUMemory

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
    local = _local_gpus() if device != "cpu" else None
    return this_machine(nodes) if local is None else replace(local, nodes=nodes)


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


def answer(job: Job, cluster: Cluster, run: str | None = None, scale: bool = False, reward_s: float = 0.0) -> Answer:
    """The plan of a job, or of each stage of a pipeline.

    ``run`` is a run directory that calibrates the estimate; ``scale`` adds larger clusters; ``reward_s`` are the seconds
    that the reward of a chunk waits for a service. Raises BadInput.
    """
    pipeline = kind_of(job).stages(job)
    if not 0 <= reward_s < math.inf:
        raise BadInput(f"--reward-seconds {reward_s:g}: give a finite number of seconds, 0 or more")
    if run is not None and not any(kind_of(stage).needs(stage).rl_step for stage in pipeline.values()):
        raise BadInput(f"--from {run}: a run calibrates the estimate of a ppo job only; remove --from")
    lines, verdicts = [f"on {_device(cluster)}"], []
    for name, stage in pipeline.items():
        on_cluster = stage.model_copy(update={"cluster": job.cluster})
        stage_answer = _stage(on_cluster, pipeline, cluster, run, scale, reward_s)
        lines += [f"{name}: {line}" if name else line for line in stage_answer.lines]
        if stage_answer.yes is not None:
            verdicts.append(stage_answer.yes)
    return Answer(lines, all(verdicts) if verdicts else None)


def _device(c: Cluster) -> str:
    nodes = f"{c.nodes} nodes of " if c.nodes > 1 else ""
    each = c.device.name if c.device.is_cpu else f"{c.per_node} x {c.device.name}"
    flops = f"{c.device.bf16 / 1e12:.2f} TFLOP/s {'float32, measured now' if c.device.is_cpu else 'bfloat16'}"
    return f"{nodes}{each}: {size(c.device.memory)}, {flops}"


def _stage(
    job: SingleJob, pipeline: Mapping[str, Any], cluster: Cluster, run: str | None, scale: bool, reward_s: float
) -> Answer:
    job = resolve_dtypes(job, cluster.device.kind)
    lines, job_needs = kind_of(job).describe(job), kind_of(job).needs(job)
    try:
        models = job_models(job, pipeline)
    except NoEstimate as why:
        return Answer([*lines, f"no estimate: {why}"])
    if models is None:
        return Answer(lines)
    setting = Setting(models, cluster, forecast.lengths(job), reward_s=reward_s)
    lines.append(_sizes(models))
    if run is not None and job_needs.rl_step is not None:
        setting = forecast.calibrated(setting, Path(run), pipeline)
        factors = ", ".join(f"{name} {value:.2f}" for name, value in vars(setting.factors).items())
        lines.append(f"calibrated by {run}: measured over predicted seconds: {factors}")
    try:
        estimate = forecast.forecast(job, setting)
    except BadInput as why:
        return Answer([*lines, f"no: {why}"], False)
    lines += [*estimate.plan.lines(), *_memory(estimate)]
    if job_needs.rl_step is not None:
        lines += [*_time(job_needs, estimate), *(_scaled(job, estimate) if scale else ())]
    elif job_needs.training is not None:
        step_s = estimate.seconds["step"]
        lines.append(f"time: {step_s:.3g} s a step, {job_needs.training.num_steps * step_s / 60:.3g} min in all")
    return Answer([*lines, _verdict(estimate)], estimate.fits)


def size(count: float) -> str:
    """Bytes in GiB or MiB."""
    return f"{count / GIB:.1f} GiB" if abs(count) >= GIB else f"{count / (1 << 20):.0f} MiB"


def _sizes(models: Models) -> str:
    def in_words(count: int) -> str:
        return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"

    sizes = [f"model: {models.policy.family}, {in_words(models.policy.num_parameters)} parameters"]
    if models.critic is not None:
        sizes.append(f"critic {in_words(models.critic.scalar_parameters)}")
    return ", ".join(sizes + [f"reward model {in_words(s.scalar_parameters)}" for s in models.rewards])


def _memory(f: Forecast) -> Iterator[str]:
    on, cpu = f.setting.cluster, f.setting.cluster.device.is_cpu
    for role, need in f.needs.items():
        parts = {**need.resident, **need.working, **need.step}
        named = " + ".join(f"{name} {size(v)}" for name, v in parts.items() if v) or "nothing of its own"
        yield f"memory of each {role} worker: {named}; with its process {size(need.resident_bytes(cpu) + need.peak_extra_bytes(cpu))}"
    generation = kind_of(f.job).needs(f.job).generation
    if generation is not None and generation.rollout.engine.memory_reservation is not None:
        yield _kv_cache_line(f, generation)
    turns = " (roles in turns)" if f.plan.colocated and not cpu and getattr(f.job.cluster, "colocate", False) else ""
    yield f"the fullest {'machine' if cpu else 'GPU'}: {size(f.device_bytes)} of {size(on.device.memory)}{turns}" + (
        "" if cpu else f"; host RAM of the fullest node: {size(f.host_bytes)} of {size(on.host_memory)}"
    )
    for gpu in f.gpus:
        yield from _gpu_lines(gpu)


def _kv_cache_line(f: Forecast, generation: Generation) -> str:
    longest, mean = generation.max_tokens, f.setting.lengths.prompt + float(f.setting.lengths.responses.mean())
    capacities = [
        max(0.0, needs.kv_cache_sequences(generation, f.setting.models, f.needs["rollout"], num_tokens))
        for num_tokens in (longest, mean)
    ]
    return (
        f"a rollout worker's KV cache holds {capacities[0]:.0f} of the longest sequences ({longest} tokens) at once, "
        f"{capacities[1]:.0f} of the mean length ({mean:.0f}); max_rows is {generation.rollout.engine.max_rows}"
    )


def _gpu_lines(gpu: GPUMemory) -> Iterator[str]:
    """The fullest stage of a kind of GPU, and a table of the bytes of all its stages."""
    workers = ", ".join(f"{count} {role}" for role, count in gpu.workers.items())
    gpus = "1 GPU" if gpu.count == 1 else f"{gpu.count} GPUs"
    if len(set(gpu.stage_bytes.values())) == 1:
        yield f"{gpus} with {workers}: {size(gpu.peak)} in every stage"
        return
    yield f"{gpus} with {workers}: fullest in {gpu.fullest_stage}, {size(gpu.peak)}"
    for stage, count in gpu.stage_bytes.items():
        yield f"  {stage:<16} {size(count):>10}"


def _time(job_needs: JobNeeds, f: Forecast) -> Iterator[str]:
    generation, rl_step, training = job_needs.generation, job_needs.rl_step, job_needs.training
    assert generation is not None
    assert rl_step is not None
    assert training is not None
    seconds = f.seconds
    yield f"response lengths: {f.setting.lengths.source}"
    parts = {name: s for name, s in seconds.items() if name != "step" and s >= 0.001}
    named = " + ".join(f"{name} {s:.3g}" for name, s in parts.items())
    mean_response = float(f.setting.lengths.responses.mean())
    tokens = generation.rollout.prompts_per_step * rl_step.group_size * mean_response
    source = "calibrated" if f.setting.factors != needs.Factors() else "from data sheets"
    yield (
        f"time of a step: {named} = {seconds['step']:.3g} s, {tokens / seconds['step']:.4g} generated tokens/s, "
        f"{training.num_steps * seconds['step'] / 3600:.3g} h in all ({source})"
    )
    longest = max(parts, key=lambda name: parts[name])
    shorter = suggestions.overrides_that_shorten(f)
    helps = (
        "; ".join(f"{override} -> {s:.3g} s" for override, s in shorter[:3])
        or "none of the usual settings shortens it here"
    )
    yield f"bottleneck: {longest}, {parts[longest] / seconds['step']:.0%} of the step; what helps: {helps}"


def _scaled(job: SingleJob, f: Forecast) -> Iterator[str]:
    """Seconds of a step if devices, workers and prompts grow together: what long tails and serial work cost."""
    cluster, job_needs = f.setting.cluster, kind_of(job).needs(job)
    generation, training, rewards = job_needs.generation, job_needs.training, job_needs.rewards
    assert generation is not None
    assert training is not None
    assert rewards is not None
    yield "on larger clusters, with as many prompts for each worker as now (simulated, an estimate):"
    for times in SCALES:
        larger = replace(cluster, nodes=times * cluster.nodes)
        times_by_ahead = []
        for ahead in (0,) if f.plan.colocated and not cluster.device.is_cpu else (0, 1):  # shared GPUs allow none
            rollout = {
                "prompts_per_step": times * generation.rollout.prompts_per_step,
                "num_workers": times * generation.rollout.num_workers,
                "ahead": ahead,
            }
            learner = {"num_workers": times * training.learner.num_workers}
            reward = {"num_workers": times * rewards.num_workers}
            scaled_job = _with_sections(job, {"rollout": rollout, "learner": learner, "rewards": reward})
            step_s = forecast.forecast(scaled_job, replace(f.setting, cluster=larger)).seconds["step"]
            times_by_ahead.append(f"ahead {ahead}: {step_s:.3g} s")
        num_devices = times * cluster.nodes * cluster.per_node
        yield f"  {num_devices} {'nodes' if cluster.device.is_cpu else 'GPUs'}: {', '.join(times_by_ahead)}"


def _with_sections(job: SingleJob, sections: Mapping[str, Mapping[str, int]]) -> SingleJob:
    """The job with other values in some of its sections, which are not checked."""
    update = {name: getattr(job, name).model_copy(update=dict(values)) for name, values in sections.items()}
    return job.model_copy(update=update)


def _verdict(f: Forecast) -> str:
    if f.fits:
        close = ", which is within the error of these formulas" if f.margin < TIGHT else ""
        return f"yes: it fits, with {f.margin:.0%} to spare{close}"
    overrides = suggestions.overrides_that_fit(f)
    helps = (
        f"it would with {' '.join(overrides)}"
        if overrides
        else "no setting of this job helps: use more devices, or a smaller model"
    )
    return f"no: it needs {1 - f.margin:.0%} of the memory there is; {helps}"
