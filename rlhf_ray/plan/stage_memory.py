"""Bytes of a GPU in each stage of a step, by the same table that moves roles at run time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..jobs.kind import JobNeeds
from ..train.device_memory import STAGES, Residents, residents
from .memory import BYTES, CACHING, CONTEXT, RESERVED, Need, activation_bytes
from .requirements import Models

LEARNER_PART_OF = {
    "weights": "weights",
    "copy for the node": "weights",
    "critic": "weights",
    "optimizer": "optimizer",
    "critic optimizer": "optimizer",
    "reference": "reference",
}
SYNC_BUCKETS = 2 * float(256 << 20)  # one is filled while the one before it is sent


@dataclass(frozen=True, kw_only=True)
class RoleMemory:
    """What one worker of a role holds of a GPU: bytes of each part, and bytes on top in the stages in which it works."""

    parts: Mapping[str, float]
    working: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GPUMemory:
    """The bytes of one GPU by stage. ``workers``: the number of workers of each role there; ``count``: GPUs like it."""

    workers: Mapping[str, int]
    stage_bytes: Mapping[str, float]
    count: int

    @property
    def fullest_stage(self) -> str:
        """The stage with the most bytes."""
        return max(self.stage_bytes, key=lambda stage: self.stage_bytes[stage])

    @property
    def peak(self) -> float:
        """Bytes of the fullest stage."""
        return self.stage_bytes[self.fullest_stage]


def job_stages(job_needs: JobNeeds) -> tuple[str, ...]:
    """The stages of :data:`STAGES` through which a job goes."""
    if job_needs.rl_step is not None:
        annotates = bool(job_needs.rl_step.columns_to_annotate)
        return tuple(stage for stage in STAGES if stage != "annotate" or annotates)
    return ("learn",) if job_needs.training is not None else ("rollout",)


def stage_residents(job_needs: JobNeeds, *, time_shared: bool) -> dict[str, Residents]:
    """The parts on a device in each stage of a job. ``time_shared``: roles use the same GPUs in turns."""
    training = job_needs.training
    return {
        stage: residents(
            stage,
            time_shared=time_shared,
            offload="none" if training is None else training.learner.offload,
            offload_reference=training is not None and training.offload_reference,
        )
        for stage in job_stages(job_needs)
    }


def role_memory(job_needs: JobNeeds, models: Models, needs: Mapping[str, Need]) -> dict[str, RoleMemory]:
    """The parts and the working memory of a worker of each role, in bytes of a GPU."""
    memories = {}
    if "learner" in needs:
        memories["learner"] = _learner(job_needs, models, needs["learner"])
    if "rollout" in needs:
        memories["rollout"] = _engine(needs["rollout"])
    if "reward" in needs:
        need = needs["reward"]
        passing = RESERVED * sum(need.working.values())
        memories["reward"] = RoleMemory(
            parts={"models": CACHING * sum(need.resident.values())},
            working={"rollout": passing, "evaluate": passing},
        )
    return memories


def _learner(job_needs: JobNeeds, models: Models, need: Need) -> RoleMemory:
    assert job_needs.training is not None
    assert job_needs.model is not None
    parts = {"weights": 0.0, "optimizer": 0.0, "reference": 0.0}
    for name, count in need.resident.items():
        parts[LEARNER_PART_OF[name]] += CACHING * count
    sharded = job_needs.training.learner.zero_stage == 3
    # At ZeRO-3 a sync gathers one parameter at a time; the largest is the embedding.
    sync = SYNC_BUCKETS + (BYTES[job_needs.model.dtype] * models.policy.head if sharded else 0.0)
    scoring = activation_bytes(need.scoring)
    return RoleMemory(
        parts=parts,
        working={
            "annotate": scoring,
            "annotate_heldout": scoring,
            "learn": need.peak_extra_bytes(cpu=False),
            "sync": sync,
            "export": sync,
        },
    )


def _engine(need: Need) -> RoleMemory:
    """An engine that reserves a budget keeps to it; other engines' memory goes through torch's allocator."""
    factor = 1.0 if need.managed else CACHING
    weights = factor * need.working["weights"]
    return RoleMemory(parts={"weights": weights, "kv_cache": factor * sum(need.working.values()) - weights})


def gpu_stage_bytes(
    workers: Mapping[str, int], memories: Mapping[str, RoleMemory], stages: Mapping[str, Residents], *, at_once: bool
) -> dict[str, float]:
    """Bytes of a GPU with these workers in each stage. ``at_once``: rollouts and updates run at the same time.

    Example: a learner with 14 GiB of weights and 30 GiB of activations, and an engine of 40 GiB. The stage `learn` has
    44 GiB and two processes' contexts, `rollout` 54 GiB if the learner's weights stay (offload none), else 40 GiB.
    """
    stage_bytes = {}
    for stage, present in stages.items():
        total = 0.0
        for role, count in workers.items():
            memory = memories[role]
            working = memory.working.get(stage, 0.0)
            if at_once and role != "learner":
                working = max(memory.working.values(), default=0.0)
            awake = sum(memory.parts[part] for part in awake_parts(present, role, memory))
            total += count * (CONTEXT + awake + working)
        stage_bytes[stage] = total
    return stage_bytes


def awake_parts(present: Residents, role: str, memory: RoleMemory) -> frozenset[str]:
    """The parts of a role that hold device memory."""
    if role == "reward":
        return frozenset(memory.parts) if present.reward_models else frozenset()
    return present.learner if role == "learner" else present.engine


def sleeping_learner_bytes(memories: Mapping[str, RoleMemory], stages: Mapping[str, Residents]) -> float:
    """Bytes of a node's memory that one learner rank takes for parts that sleep in any stage; the buffers are kept."""
    always_awake = frozenset.intersection(*(present.learner for present in stages.values()))
    return sum(count for part, count in memories["learner"].parts.items() if part not in always_awake)


def sleeping_reward_bytes(memories: Mapping[str, RoleMemory], stages: Mapping[str, Residents]) -> float:
    """The same of one reward worker."""
    sleeps = not all(present.reward_models for present in stages.values())
    return sum(memories["reward"].parts.values()) if sleeps else 0.0
