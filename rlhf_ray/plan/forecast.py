"""The forecast of a job on a cluster: placement, memory of the fullest device, seconds by stage."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..actors.placement import Plan, plan_placement
from ..config import BadInput, SingleJob, parse, resolve_dtypes
from ..jobs.kind import JobNeeds
from ..jobs.kinds import demand_of, kind_of
from ..run.reader import read_config, read_manifest
from ..run.trajectories import read_batch, trajectory_files
from . import calibrate, stages
from . import requirements as needs
from .hardware import Cluster
from .memory import BYTES, GPU_PROCESS, Need
from .model_shapes import job_models
from .requirements import Lengths, Setting
from .simulate import Layout
from .stage_memory import (
    GPUMemory,
    RoleMemory,
    gpu_stage_bytes,
    role_memory,
    sleeping_learner_bytes,
    sleeping_reward_bytes,
    stage_residents,
)

RAY = 0.7e9  # bytes of the driver, the raylet and Ray's other processes


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Where a job runs, and what it takes.

    ``needs``: of one worker, by role. ``device_bytes``: of the fullest device; ``host_bytes``: of the fullest node's
    memory. ``gpus``: the kinds of GPUs by the workers on them, the fullest first; none on a CPU. ``seconds``: by stage of
    a step.
    """

    job: SingleJob
    setting: Setting
    plan: Plan
    needs: dict[str, Need]
    device_bytes: float
    host_bytes: float
    gpus: tuple[GPUMemory, ...]
    seconds: dict[str, float]

    @property
    def margin(self) -> float:
        """The share of device or host memory that is left, whichever is scarcer; below 0 the job does not fit."""
        cluster = self.setting.cluster
        return min(1.0 - self.device_bytes / cluster.device.memory, 1.0 - self.host_bytes / cluster.host_memory)

    @property
    def fits(self) -> bool:
        """Whether memory is enough, and some of an engine's budget is left for its KV cache."""
        return self.margin >= 0 and all(n.working.get("KV cache", 1.0) > 0 for n in self.needs.values())


def forecast(job: SingleJob, setting: Setting) -> Forecast:
    """The forecast of one job. Raises BadInput if it cannot be placed."""
    cluster = setting.cluster
    cpu = cluster.device.is_cpu
    plan = placed(job, cluster)
    at_reward = kind_of(job).needs(resolve_dtypes(job, plan.device_of("reward")))  # which may be the CPU of a GPU node
    job = resolve_dtypes(job, cluster.device.kind)
    job_needs = kind_of(job).needs(job)
    role_needs: dict[str, Need] = {}
    if job_needs.training is not None:
        role_needs["learner"] = needs.learner(job_needs, setting.models, cpu, cluster.per_node)
    if job_needs.generation is not None:
        role_needs["rollout"] = needs.rollout(job_needs.generation, setting.models, cluster)
        role_needs["reward"] = needs.reward(setting.models, at_reward)
    nodes = set(plan.nodes)
    memories = {} if cpu else role_memory(job_needs, setting.models, role_needs)
    host_bytes = max(_host_bytes(job_needs, plan, setting, role_needs, memories, node) for node in nodes)
    gpus: tuple[GPUMemory, ...] = ()
    if cpu:
        workers = {node: _workers_on(plan, role_needs, node) for node in nodes}
        host_bytes += max(sum(n.resident_bytes(cpu) + n.peak_extra_bytes(cpu) for n in workers[node]) for node in nodes)
        device_bytes = host_bytes
    else:
        gpus = _gpu_memories(job_needs, plan, memories)
        device_bytes = gpus[0].peak if gpus else 0.0
    shared = replace(setting, share=min(1.0, plan.num_threads / cluster.cores) if cpu else 1.0)
    return Forecast(
        job=job,
        setting=shared,
        plan=plan,
        needs=role_needs,
        device_bytes=device_bytes,
        host_bytes=host_bytes,
        gpus=gpus,
        seconds=_seconds(job, shared, plan),
    )


def placed(job: SingleJob, cluster: Cluster) -> Plan:
    """The placement of a job. Raises BadInput if it does not fit on the nodes."""
    return plan_placement(job.cluster, demand_of(job), cluster.resources())


def _workers_on(plan: Plan, role_needs: Mapping[str, Need], node: int) -> list[Need]:
    """The needs of each worker of a node."""
    return [role_needs[r] for r, seats in plan.seats.items() for s in seats if plan.nodes[s] == node]


def _time_shared(job_needs: JobNeeds, plan: Plan) -> bool:
    """Whether roles use the same GPUs in turns, and so move to host memory and back."""
    generation = job_needs.generation
    return plan.colocated and job_needs.training is not None and generation is not None and not generation.rollout.ahead


def _gpu_memories(job_needs: JobNeeds, plan: Plan, memories: Mapping[str, RoleMemory]) -> tuple[GPUMemory, ...]:
    """The GPUs by the workers on them, the fullest first."""
    residents = stage_residents(job_needs, time_shared=_time_shared(job_needs, plan))
    at_once = job_needs.generation is not None and job_needs.generation.rollout.ahead > 0
    counts: Counter[tuple[tuple[str, int], ...]] = Counter()
    for slot, resources in enumerate(plan.slots):
        if workers := plan.workers_on_gpu(slot):
            counts[tuple(workers.items())] += math.ceil(resources["GPU"])
    kinds = [
        GPUMemory(
            workers=dict(workers),
            stage_bytes=gpu_stage_bytes(dict(workers), memories, residents, at_once=at_once),
            count=count,
        )
        for workers, count in counts.items()
    ]
    return tuple(sorted(kinds, key=lambda gpu: -gpu.peak))


def _host_bytes(
    job_needs: JobNeeds,
    plan: Plan,
    setting: Setting,
    role_needs: Mapping[str, Need],
    memories: Mapping[str, RoleMemory],
    node: int,
) -> float:
    """Host memory of a node, without what workers on a CPU take.

    That is Ray and the published weights in the object store. On a node with GPUs it is also the processes, what sleeps
    there, reward models without a GPU, and the models that are being loaded: below ZeRO-3 each rank loads a whole one.
    """
    num = setting.models.policy.num_parameters
    model, training, generation = job_needs.model, job_needs.training, job_needs.generation
    assert model is not None
    published = training is not None and generation is not None
    total = RAY + (BYTES[model.dtype] * num if published else 0.0)
    if setting.cluster.device.is_cpu:
        return total
    num_workers = {role: sum(plan.nodes[s] == node for s in seats) for role, seats in plan.seats.items()}
    total += GPU_PROCESS * sum(num_workers.values())
    residents = stage_residents(job_needs, time_shared=_time_shared(job_needs, plan))
    if "learner" in memories:
        total += num_workers["learner"] * sleeping_learner_bytes(memories, residents)
    if "reward" in memories and plan.share["reward"].get("GPU"):
        total += num_workers["reward"] * sleeping_reward_bytes(memories, residents)
    elif "reward" in role_needs:
        need = role_needs["reward"]
        total += num_workers["reward"] * (need.resident_bytes(cpu=True) + need.peak_extra_bytes(cpu=True))
    if training is not None and generation is not None and plan.colocated:
        total += num_workers["rollout"] * BYTES[generation.rollout.engine.dtype] * num
    if training is not None and training.learner.zero_stage < 3:
        total += num_workers["learner"] * BYTES[model.dtype] * num
    return total


def _seconds(job: SingleJob, setting: Setting, plan: Plan) -> dict[str, float]:
    job_needs = kind_of(job).needs(job)
    training, cluster = job_needs.training, setting.cluster
    if job_needs.rl_step is not None:
        return calibrate.predicted(job, setting, layout(plan, cluster))
    if training is None:
        return {}
    rows, length = float(training.sequences), setting.lengths.prompt
    samples = stages.Samples(rows, rows * length, rows * length**2, rows * length)
    work = needs.learner_work(job_needs, setting.models.policy, setting.share)
    return {"step": stages.updating(work, samples, 1, cluster) + stages.efficiency(cluster.device).call_s}


def layout(plan: Plan, cluster: Cluster) -> Layout:
    """The devices of a placement for the simulation: a slot of GPUs, or all cores of a node."""

    def devices(role: str) -> list[str]:
        has_gpu = bool(plan.share[role].get("GPU"))
        return [f"slot {s}" if has_gpu else f"node {plan.nodes[s]}" for s in plan.seats[role]]

    demand = float(min(plan.num_threads, cluster.cores)) if cluster.device.is_cpu else 1.0
    capacity = {f"node {n}": float(cluster.cores) for n in range(cluster.nodes)}
    capacity |= {f"slot {s}": gpus for s, slot in enumerate(plan.slots) if (gpus := slot.get("GPU", 0.0)) > 1}
    return Layout(
        rollout=devices("rollout"),
        reward=devices("reward"),
        learner=devices("learner"),
        demand=demand,
        capacity=capacity,
    )


def lengths(job: SingleJob) -> Lengths:
    """The lengths to expect before any run: half of the longest."""
    job_needs = kind_of(job).needs(job)
    if job_needs.generation is not None:
        return needs.guessed(job_needs.generation.max_prompt_tokens, job_needs.generation.rollout.max_new_tokens)
    longest = 0 if job_needs.training is None else job_needs.training.max_tokens
    return Lengths(longest / 2, np.array([0]), "a guess")


def calibrated(setting: Setting, run: Path, pipeline: Mapping[str, SingleJob]) -> Setting:
    """The setting with a run's lengths, and factors from its metrics.

    Raises BadInput if ``run`` is not the run of an RL job on the same kind of device.
    """
    tree = read_config(run)
    job = None if tree is None else parse(tree, str(run / "config.json"))
    if job is None or kind_of(job).needs(job).rl_step is None:
        raise BadInput(f"--from {run}: give the run directory of a ppo job (of a pipeline: of its stage)")
    gpus = read_manifest(run).get("resources", {}).get("GPU", 0)
    cluster = setting.cluster
    if bool(gpus) == cluster.device.is_cpu:
        ran_on, planned_for = ("GPUs", "a CPU") if gpus else ("a CPU", "GPUs")
        raise BadInput(
            f"--from {run}: ran on {ran_on}, and the plan is for {planned_for}; give a run on the same devices"
        )
    lines = calibrate.steady_metrics(run)
    batches = [read_batch(file) for file in trajectory_files(run)[-8:]]
    responses = np.concatenate([(b.lengths - b.prompt_length)[b.response_lengths > 0] for b in batches])
    run_lengths = calibrate.lengths(responses, np.concatenate([b.prompt_length for b in batches]), run)
    plan = placed(job, cluster)
    share = min(1.0, plan.num_threads / cluster.cores) if cluster.device.is_cpu else 1.0
    run_models = job_models(job, pipeline)
    assert run_models is not None
    run_setting = Setting(run_models, cluster, run_lengths, share=share)
    factors = calibrate.factors(job, run_setting, layout(plan, cluster), lines)
    return replace(setting, lengths=run_lengths, factors=factors)
