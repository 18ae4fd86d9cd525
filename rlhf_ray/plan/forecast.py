"""A job put on a cluster that need not be there: placement, memory of the fullest device, seconds by stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..actors.placement import Plan, plan_placement
from ..config import BadInput, RLJob, SingleJob, Supervised, parse
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

RAY = 0.7e9  # the driver, the raylet and Ray's other processes


@dataclass(frozen=True)
class Forecast:
    """Where a job runs, what the fullest device and the fullest host hold of how much, and seconds by stage."""

    job: SingleJob
    given: Setting
    plan: Plan
    needs: dict[str, Need]
    taken: float
    host: float
    seconds: dict[str, float]

    @property
    def margin(self) -> float:
        """The share of device or host memory that is left, whichever is scarcer; below 0 it does not fit."""
        on = self.given.cluster
        return min(1.0 - self.taken / on.device.memory, 1.0 - self.host / on.host_memory)

    @property
    def fits(self) -> bool:
        """Whether there is room, and where an engine has a budget some of it for its cache."""
        return self.margin >= 0 and all(n.working.get("KV cache", 1.0) > 0 for n in self.needs.values())


def forecast(job: SingleJob, given: Setting) -> Forecast:
    """The forecast of one job. Raises BadInput where it cannot be placed."""
    on = given.cluster
    cpu = on.device.is_cpu
    where = placed(job, on)
    job_needs = kind_of(job).needs(job)
    found: dict[str, Need] = {}
    if job_needs.training is not None:
        found["learner"] = needs.learner(job_needs, given.models, cpu)
    if job_needs.generation is not None:
        found["rollout"] = needs.rollout(job_needs.generation, given.models, on)
        found["reward"] = needs.reward(given.models)
    host = max(_host(job_needs, where, given, node) for node in set(where.nodes))
    if cpu:
        host += max(sum(n.stays(cpu) + n.comes(cpu) for n in _there(where, found, node)) for node in set(where.nodes))
    taken = host if cpu else max(_slot(job_needs, where, found, s) for s in range(len(where.slots)))
    settled = replace(given, share=min(1.0, where.num_threads / on.cores) if cpu else 1.0)
    return Forecast(job, settled, where, found, taken, host, _seconds(job, settled, where))


def placed(job: SingleJob, on: Cluster) -> Plan:
    """The placement of a job. Raises BadInput."""
    return plan_placement(job.cluster, demand_of(job), on.resources())


def _there(where: Plan, found: Mapping[str, Need], node: int) -> list[Need]:
    return [found[r] for r, seats in where.seats.items() for s in seats if where.nodes[s] == node]


def _slot(job_needs: JobNeeds, where: Plan, found: Mapping[str, Need], slot: int) -> float:
    """Bytes of one GPU of a slot. Where roles take turns, one of them peaks at a time."""
    there = [found[r] for r, seats in where.seats.items() for s in seats if s == slot and where.share[r].get("GPU")]
    generation = job_needs.generation
    turns = where.colocated and (generation is None or generation.rollout.ahead == 0)
    comes = [n.comes(cpu=False) for n in there]
    return sum(n.stays(cpu=False) for n in there) + (max(comes, default=0.0) if turns else sum(comes))


def _host(job_needs: JobNeeds, where: Plan, given: Setting, node: int) -> float:
    """Host memory of a node besides a CPU's workers: Ray, the published weights in the object store, and beside GPUs processes, weights
    of engines that sleep, and models that are being loaded (by each rank whole, below ZeRO-3)."""
    num = given.models.policy.num_parameters
    model, training, generation = job_needs.model, job_needs.training, job_needs.generation
    assert model is not None
    published = training is not None and generation is not None
    total = RAY + (BYTES[model.dtype] * num if published else 0.0)
    if given.cluster.device.is_cpu:
        return total
    there = {r: sum(where.nodes[s] == node for s in seats) for r, seats in where.seats.items()}
    total += GPU_PROCESS * sum(there.values())
    if training is not None and generation is not None and where.colocated:
        total += there["rollout"] * BYTES[generation.rollout.engine.dtype] * num
    if training is not None and training.learner.zero_stage < 3:
        total += there["learner"] * BYTES[model.dtype] * num
    return total


def _seconds(job: SingleJob, given: Setting, where: Plan) -> dict[str, float]:
    if isinstance(job, RLJob):
        return calibrate.predicted(job, given, layout(where, given.cluster))
    if not isinstance(job, Supervised):
        return {}
    training = kind_of(job).needs(job).training
    assert training is not None
    rows, length = float(training.sequences), given.lengths.prompt
    seen = stages.Samples(rows, rows * length, rows * length**2, rows * length)
    model = needs.learning(job, given.models.policy, given.share)
    return {"step": stages.updating(model, seen, 1, given.cluster) + stages.efficiency(given.cluster.device).call_s}


def layout(where: Plan, on: Cluster) -> Layout:
    """The devices of a placement for the simulation: a slot of GPUs, or all cores of a node."""

    def names(role: str) -> list[str]:
        own = bool(where.share[role].get("GPU"))
        return [f"slot {s}" if own else f"node {where.nodes[s]}" for s in where.seats[role]]

    demand = float(min(where.num_threads, on.cores)) if on.device.is_cpu else 1.0
    capacity = {f"node {n}": float(on.cores) for n in range(on.nodes)}
    return Layout(
        rollout=names("rollout"), reward=names("reward"), learner=names("learner"), demand=demand, capacity=capacity
    )


def lengths(job: SingleJob) -> Lengths:
    """What to expect before any run: half of the longest."""
    job_needs = kind_of(job).needs(job)
    if job_needs.generation is not None:
        return needs.guessed(job_needs.generation.max_prompt_tokens, job_needs.generation.rollout.max_new_tokens)
    longest = 0 if job_needs.training is None else job_needs.training.max_tokens
    return Lengths(longest / 2, np.array([0]), "a guess")


def calibrated(given: Setting, run: Path, stages_: Mapping[str, Any]) -> Setting:
    """The setting with a run's lengths, and factors from its metrics. Raises BadInput where it is no run of an RL job on such devices."""
    tree = read_config(run)
    job = None if tree is None else parse(tree, str(run / "config.json"))
    if not isinstance(job, RLJob):
        raise BadInput(f"--from {run}: give the run directory of a ppo job (of a pipeline: of its stage)")
    gpus = read_manifest(run).get("resources", {}).get("GPU", 0)
    on = given.cluster
    if bool(gpus) == on.device.is_cpu:
        kinds = ("GPUs", "a CPU") if gpus else ("a CPU", "GPUs")
        raise BadInput(
            f"--from {run}: ran on {kinds[0]}, and the plan is for {kinds[1]}; give a run on the same devices"
        )
    lines = calibrate.steady_metrics(run)
    batches = [read_batch(file) for file in trajectory_files(run)[-8:]]
    responses = np.concatenate([(b.lengths - b.prompt_length)[b.response_lengths > 0] for b in batches])
    seen = calibrate.lengths(responses, np.concatenate([b.prompt_length for b in batches]), run)
    where = placed(job, on)
    share = min(1.0, where.num_threads / on.cores) if on.device.is_cpu else 1.0
    own_models = job_models(job, stages_)
    assert own_models is not None
    own = Setting(own_models, on, seen, share=share)
    return replace(given, lengths=seen, factors=calibrate.factors(job, own, layout(where, on), lines))
