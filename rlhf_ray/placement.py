"""Placement: which actor gets which share of which device. Colocated roles take turns on a slot; others own one each."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from .config import BadInput, ClusterConfig


@dataclass(frozen=True)
class Plan:
    """Worker i of a role sits in slot ``(first[role] + i) % num_slots`` with ``share`` of it.

    Slots are of equal size, but for those of roles in ``gpus``: their one worker owns that many GPUs.
    """

    counts: dict[str, int]
    first: dict[str, int]
    gpus: dict[str, int]
    num_slots: int
    slot: dict[str, float]
    share: dict[str, float]
    device: str
    num_threads: int
    colocated: bool

    def lines(self) -> list[str]:
        """The plan in words."""
        where = f"{self.num_slots} slots of " + " + ".join(f"{v:g} {k}" for k, v in self.slot.items())
        each = " + ".join(f"{v:g} {k}" for k, v in self.share.items())
        wide = {role: f" ({n} GPUs each)" for role, n in self.gpus.items()}
        roles = ", ".join(f"{n} {role}{wide.get(role, '')}" for role, n in self.counts.items())
        return [f"placement: {roles} on {where}, {each} and {self.num_threads} threads each ({self.device})"]

    def bundles(self) -> list[dict[str, float]]:
        """The resources of each slot."""
        found = [dict(self.slot) for _ in range(self.num_slots)]
        for role, gpus in self.gpus.items():
            for i in range(self.counts[role]):
                found[self.first[role] + i]["GPU"] = float(gpus)
        return found


def plan(
    config: ClusterConfig, counts: dict[str, int], resources: dict[str, float], gpus_each: dict[str, int] | None = None
) -> Plan:
    """Shares ``resources`` (Ray's CPU and GPU totals) among ``counts`` workers of each role.

    ``gpus_each`` names roles whose workers span several GPUs. Raises BadInput where there are fewer GPUs than the roles
    need, or where such a worker would have to share them.
    """
    gpus, cpus = int(resources.get("GPU", 0)), float(resources.get("CPU", 1))
    device = ("cuda" if gpus else "cpu") if config.device == "auto" else config.device
    colocated = config.colocate or device == "cpu"
    total = sum(counts.values())
    num_slots = max(counts.values()) if colocated else total
    wide = {role: n for role, n in (gpus_each or {}).items() if n > 1}
    if wide and colocated:
        raise BadInput(
            f"a {' or '.join(wide)} worker on several GPUs (tensor_parallel_size) needs them for itself: "
            "set cluster.colocate=false on GPUs, or tensor_parallel_size=1"
        )
    needed = num_slots + sum((n - 1) * counts[role] for role, n in wide.items())
    if device == "cuda" and needed > gpus:
        raise BadInput(
            f"the job needs {needed} GPUs ({counts}, colocate: {config.colocate}) and Ray has {gpus}; "
            "lower num_workers, set cluster.colocate=true or cluster.device=cpu"
        )
    first = dict.fromkeys(counts, 0)
    if not colocated:
        offsets = [sum(list(counts.values())[:i]) for i in range(len(counts))]
        first = dict(zip(counts, offsets, strict=True))
    per_slot = len(counts) if colocated else 1
    cpu = max(0.01, min(1.0, int(100 * cpus / (num_slots * per_slot)) / 100))
    share = {"CPU": cpu} | (
        {"GPU": round(1.0 / per_slot - 0.005, 2) if per_slot > 1 else 1.0} if device == "cuda" else {}
    )
    slot = {"CPU": cpu * per_slot} | ({"GPU": 1.0} if device == "cuda" else {})
    cores = os.cpu_count() or 1
    threads = config.num_threads or max(1, cores // counts.get("learner", 1))
    return Plan(counts, first, wide, num_slots, slot, share, device, threads, colocated)


class Placement:
    """A Plan made real: a placement group that lives as long as the job."""

    def __init__(self, what: Plan, timeout_s: float) -> None:
        self.plan = what
        self.group: PlacementGroup = placement_group(what.bundles(), strategy="PACK")
        try:
            ray.get(self.group.ready(), timeout=timeout_s)
        except ray.exceptions.GetTimeoutError:
            have = ray.available_resources()
            raise BadInput(f"Ray could not place {what.lines()[0]} in {timeout_s:.0f} s; it has free: {have}") from None

    def options(self, role: str, index: int) -> dict[str, Any]:
        """Ray actor options of worker ``index`` of ``role``."""
        p = self.plan
        slot = (p.first[role] + index) % p.num_slots
        return {
            "num_cpus": p.share["CPU"],
            "num_gpus": p.gpus.get(role, p.share.get("GPU", 0)),
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=slot),
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(p.num_threads), "TOKENIZERS_PARALLELISM": "false"}},
        }

    def remove(self) -> None:
        """Gives the resources back."""
        remove_placement_group(self.group)
