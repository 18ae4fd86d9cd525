"""Placement: which actor gets which share of which device.

The arithmetic (`plan_placement`) needs no Ray, so that `rlhf-ray plan` can use it for clusters that do not exist.
`Placement` reserves a plan's slots with Ray.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..config import BadInput, ClusterConfig, LearnerConfig, RewardsConfig, RolloutConfig, RuleReward
from ..run.usage import Devices

Resources = dict[str, float]
"""Amounts by Ray's names: {"CPU": 8.0, "GPU": 1.0}."""

Nodes = Sequence[Mapping[str, float]]
"""The resources of each node."""

TIMEOUT_S = 120.0  # for Ray to reserve the slots of a plan


@dataclass(frozen=True, kw_only=True)
class Demand:
    """The workers that a job needs, by role.

    ``gpus_per_worker`` overrides the default of one GPU for a role: several GPUs of one node (tensor parallelism), or
    none. The user's `cluster.gpus` overrides both.
    """

    counts: dict[str, int]
    gpus_per_worker: dict[str, float] = field(default_factory=dict)


def worker_demand(
    *,
    learner: LearnerConfig | None = None,
    rollout: RolloutConfig | None = None,
    rewards: RewardsConfig | None = None,
) -> Demand:
    """The demand of a job with these sections. Reward terms that are all rules need no GPU."""
    counts: dict[str, int] = {}
    gpus: dict[str, float] = {}
    if learner is not None:
        counts["learner"] = learner.num_workers
    if rollout is not None:
        counts["rollout"], gpus["rollout"] = rollout.num_workers, float(rollout.engine.num_gpus)
    if rewards is not None:
        counts["reward"] = rewards.num_workers
        if all(isinstance(term, RuleReward) for term in rewards.terms):
            gpus["reward"] = 0.0
    return Demand(counts=counts, gpus_per_worker=gpus)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Worker i of a role sits in slot ``seats[role][i]`` and gets ``share[role]`` of it.

    ``slots`` holds the resources of each slot. Slots are reserved group by group, the hardest to place first: a group
    is a strategy of Ray's and the indices of its slots. ``nodes`` is the node on which each slot is expected.
    """

    counts: dict[str, int]
    seats: dict[str, list[int]]
    share: dict[str, Resources]
    slots: list[Resources]
    groups: list[tuple[str, list[int]]]
    nodes: list[int]
    device: str
    num_threads: int
    colocated: bool

    def lines(self) -> list[str]:
        """The plan in words."""
        gpus = {role: share.get("GPU", 0) for role, share in self.share.items()}
        roles = ", ".join(
            f"{count} {role}" + (f" ({gpus[role]:g} GPUs each)" if gpus[role] > 1 else "")
            for role, count in self.counts.items()
        )
        kinds = Counter(_in_words(slot) for slot in self.slots)
        slots = " and ".join(f"{count} slots of {kind}" for kind, count in kinds.items())
        shares = "; ".join(f"{role} {_in_words(share)}" for role, share in self.share.items())
        lines = [f"placement: {roles} on {slots} ({shares}), {self.num_threads} threads each ({self.device})"]
        return lines + ([f"nodes: {self._by_node()}"] if len(set(self.nodes)) > 1 else [])

    def _by_node(self) -> str:
        """'2 with 1 rollout; one with 4 learner': how many nodes hold the same workers."""
        workers: dict[int, list[str]] = {}
        for role, seats in self.seats.items():
            for node, count in sorted(Counter(self.nodes[slot] for slot in seats).items()):
                workers.setdefault(node, []).append(f"{count} {role}")
        kinds = Counter(", ".join(roles) for _, roles in sorted(workers.items()))
        return "; ".join(
            f"{count} with {roles}" if count > 1 else f"one with {roles}" for roles, count in kinds.items()
        )

    def device_of(self, role: str) -> str:
        """Where the models of a role live: a role without a GPU stays on the CPU."""
        return self.device if self.share[role].get("GPU") or self.device == "cpu" else "cpu"


def _in_words(resources: Resources) -> str:
    return " + ".join(f"{amount:g} {name}" for name, amount in resources.items())


def plan_placement(config: ClusterConfig, demand: Demand, nodes: Nodes) -> Plan:
    """Distributes the resources of ``nodes`` over the demanded workers.

    Raises BadInput if they do not fit; the message says what is missing.
    """
    counts = demand.counts
    num_gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    device = ("cuda" if num_gpus else "cpu") if config.device == "auto" else config.device
    colocated = config.colocate or device == "cpu"
    gpus = _gpus_per_worker(config, demand, device, colocated)
    seats, slots = _shared_slots(counts) if colocated else _separate_slots(counts, gpus)
    if device == "cpu":
        slots = [{} for _ in slots]
    needed = round(sum(slot.get("GPU", 0.0) for slot in slots))
    if needed > num_gpus:
        raise BadInput(
            f"the job needs {needed} GPUs ({counts}, colocate: {config.colocate}) and there are {num_gpus}; lower "
            "num_workers, let roles share a GPU (cluster.gpus.reward=0.5), set cluster.colocate=true or "
            "cluster.device=cpu"
        )
    groups = _slot_groups(seats, slots, "SPREAD" if config.spread else "PACK")
    workers = Counter(slot for role_seats in seats.values() for slot in role_seats)
    largest = largest_share(groups, [(workers[i], slot) for i, slot in enumerate(slots)], nodes)
    if largest is None:
        raise BadInput(_why_not(slots, nodes))
    return Plan(
        counts=counts,
        seats=seats,
        share={role: {"CPU": largest.cpus} | ({"GPU": gpus[role]} if gpus[role] else {}) for role in counts},
        slots=largest.slots,
        groups=groups,
        nodes=largest.nodes,
        device=device,
        num_threads=config.num_threads or max(1, (os.cpu_count() or 1) // counts.get("learner", 1)),
        colocated=colocated,
    )


def _gpus_per_worker(config: ClusterConfig, demand: Demand, device: str, colocated: bool) -> dict[str, float]:
    """GPUs of one worker of each role. Raises BadInput for what cannot be shared."""
    counts, defaults = demand.counts, demand.gpus_per_worker
    parallel = {role: gpus for role, gpus in defaults.items() if gpus > 1}
    if parallel and colocated:
        raise BadInput(
            f"a {' or '.join(parallel)} worker on several GPUs (tensor_parallel_size) needs them for itself: "
            "set cluster.colocate=false on GPUs, or tensor_parallel_size=1"
        )
    if device == "cpu":
        return dict.fromkeys(counts, 0.0)
    configured: dict[str, float] = {role: gpus for role, gpus in config.gpus.items() if role in counts}
    for role, gpus in configured.items():
        if role in parallel and gpus != parallel[role]:
            raise BadInput(
                f"cluster.gpus.{role} = {gpus:g}, and tensor_parallel_size is {parallel[role]:g}; leave it out"
            )
    if configured.get("learner", 1) != 1 and (counts["learner"] > 1 or not configured["learner"]):
        raise BadInput(
            "cluster.gpus.learner: each of several learner ranks needs one GPU for itself (nccl); leave it out"
        )
    if not colocated:
        return {role: float(configured.get(role, defaults.get(role, 1))) for role in counts}
    others = [role for role in counts if role not in configured and defaults.get(role, 1)]
    left = 1.0 - sum(configured.values())
    if left < 0 or (others and left <= 0):
        raise BadInput(
            f"cluster.gpus: roles that take turns on one GPU cannot have {sum(configured.values()):g} of it together"
        )
    equal = math.floor(100 * left / len(others) + 1e-9) / 100 if others else 0.0
    return {role: float(configured.get(role, equal if role in others else 0.0)) for role in counts}


def _shared_slots(counts: dict[str, int]) -> tuple[dict[str, list[int]], list[Resources]]:
    """Seats and slots of roles that take turns: worker i of every role sits in slot i, which is one GPU."""
    seats = {role: list(range(count)) for role, count in counts.items()}
    return seats, [{"GPU": 1.0} for _ in range(max(counts.values()))]


def _separate_slots(counts: dict[str, int], gpus: dict[str, float]) -> tuple[dict[str, list[int]], list[Resources]]:
    """Seats and slots of roles that own their devices: one slot a worker; workers with less than a GPU share slots.

    Three rollout workers of 0.5 GPU and one reward worker of 0.25 sit in slots 0, 0, 1 and 1.
    """
    seats: dict[str, list[int]] = {role: [] for role in counts}
    slots: list[Resources] = []
    free: dict[int, float] = {}  # what is left of each slot that is shared
    for role, count in counts.items():
        share = gpus[role]
        for _ in range(count):
            slot = next((s for s, left in free.items() if 0 < share < 1 and left >= share - 1e-9), None)
            if slot is None:
                slot = len(slots)
                slots.append({"GPU": float(max(1.0, share))} if share else {})
                if 0 < share < 1:
                    free[slot] = 1.0
            if slot in free:
                free[slot] -= share
            seats[role].append(slot)
    return seats, slots


def _slot_groups(seats: dict[str, list[int]], slots: list[Resources], strategy: str) -> list[tuple[str, list[int]]]:
    """Slots of several GPUs, which need a whole node; learner ranks, packed; and the rest."""
    learner = set(seats.get("learner", []))
    parallel = [i for i, slot in enumerate(slots) if slot.get("GPU", 0) > 1 and i not in learner]
    rest = [i for i in range(len(slots)) if i not in learner and i not in parallel]
    groups = ((strategy, parallel), ("PACK", sorted(learner)), (strategy, rest))
    return [(group_strategy, indices) for group_strategy, indices in groups if indices]


@dataclass(frozen=True)
class Share:
    """``cpus`` of each worker, the slots with their CPUs, and a node for each slot."""

    cpus: float
    slots: list[Resources]
    nodes: list[int]


def largest_share(
    groups: Sequence[tuple[str, list[int]]], slots: Sequence[tuple[int, Resources]], nodes: Nodes
) -> Share | None:
    """The largest CPU share of a worker, in hundredths up to 1, with which all slots find a node; None if none does.

    ``slots`` are (number of workers, resources without CPUs); a slot needs the share of each of its workers.
    Every hundredth is tried, because slots that fit with a large share need not fit with a smaller one: a slot that
    no longer needs the node with many CPUs takes a GPU of the node with few, and the next slot finds none there.
    """
    for hundredths in range(100, 0, -1):
        cpus = hundredths / 100
        full = [{"CPU": round(cpus * workers, 4), **slot} for workers, slot in slots]
        places = _fit_slots(groups, full, nodes)
        if places is not None:
            return Share(cpus, full, places)
    return None


def _fit_slots(groups: Sequence[tuple[str, list[int]]], slots: Sequence[Resources], nodes: Nodes) -> list[int] | None:
    """A node for each slot, or None if a slot finds none.

    Packed groups fill the node with the most free GPUs first; spread ones go round the nodes.
    """
    free = [{name: float(node.get(name, 0.0)) for name in ("CPU", "GPU")} for node in nodes]
    places = [-1] * len(slots)
    for strategy, indices in groups:
        used: Counter[int] = Counter()
        order = sorted(range(len(free)), key=lambda n: (-free[n]["GPU"], -free[n]["CPU"], n))
        for slot in indices:
            fitting = (n for n in order if all(free[n][name] >= v - 1e-6 for name, v in slots[slot].items()))
            if strategy == "SPREAD":
                node = min(fitting, key=lambda n: used[n], default=None)
            else:
                node = next(fitting, None)
            if node is None:
                return None
            used[node] += 1
            places[slot] = node
            for name, amount in slots[slot].items():
                free[node][name] -= amount
    return places


def _why_not(slots: list[Resources], nodes: Nodes) -> str:
    """Why no share fits although there are enough GPUs: they are on the wrong nodes, or their nodes lack CPUs."""
    offer = ", ".join(f"{node.get('GPU', 0):g} GPUs and {node.get('CPU', 0):g} CPUs" for node in nodes)
    widest = max(slot.get("GPU", 0.0) for slot in slots)
    need = f"{len(slots)} slots" + (f", the widest of {widest:g} GPUs of one node" if widest > 1 else "")
    return (
        f"the job needs {need}, and its nodes have {offer}; take nodes with more resources, or lower "
        "tensor_parallel_size or num_workers"
    )


class Placement:
    """The placement groups that reserve a Plan's slots, as long as the job lasts.

    A trial of a search already runs in a placement group, whose bundles are the plan's nodes. It is used as it is.
    """

    def __init__(self, plan: Plan, timeout_s: float = TIMEOUT_S) -> None:
        """Reserves the slots. Raises BadInput if Ray cannot within ``timeout_s``."""
        import ray
        from ray.util.placement_group import placement_group

        self.plan = plan
        self.groups: list[Any] = []
        self.bundles: dict[int, tuple[Any, int]] = {}  # slot: its placement group and bundle
        trial_group = _trial_group()
        if trial_group is not None:
            self.bundles = {slot: (trial_group, bundle) for slot, bundle in enumerate(plan.nodes)}
            return
        for strategy, indices in plan.groups:
            group = placement_group([plan.slots[i] for i in indices], strategy=strategy)
            self.groups.append(group)
            self.bundles |= {slot: (group, bundle) for bundle, slot in enumerate(indices)}
            try:
                ray.get(group.ready(), timeout=timeout_s)
            except ray.exceptions.GetTimeoutError:
                free = ray.available_resources()
                self.remove()
                raise BadInput(
                    f"Ray could not place {plan.lines()[0]} in {timeout_s:.0f} s; it has free: {free}"
                ) from None

    def options(self, role: str, index: int) -> dict[str, Any]:
        """Ray actor options of worker ``index`` of ``role``."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        group, bundle = self.bundles[self.plan.seats[role][index]]
        share = self.plan.share[role]
        return {
            "num_cpus": share["CPU"],
            "num_gpus": share.get("GPU", 0),
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle),
            "runtime_env": {
                "env_vars": {"OMP_NUM_THREADS": str(self.plan.num_threads), "TOKENIZERS_PARALLELISM": "false"}
            },
        }

    def remove(self) -> None:
        """Gives the resources back."""
        from ray.util.placement_group import remove_placement_group

        for group in self.groups:
            remove_placement_group(group)


def reserved_devices(plan: Plan, nodes: Nodes) -> Devices:
    """The devices that a plan reserves: GPUs, or on CPUs the workers' threads, at most all cores of the ``nodes``.

    A colocated worker has the whole GPU of its slot in its turn. A reward worker counts as idle if it runs rules
    (which wait for rollouts) or is colocated (its models share a turn with the rollouts).
    """
    if plan.device == "cpu":
        cores = sum(node.get("CPU", 0.0) for node in nodes)
        count = min(cores, float(plan.num_threads * len(plan.slots)))
        threads = {role: 0.0 if role == "reward" else float(plan.num_threads) for role in plan.counts}
        return Devices("CPU", count, {role: (threads[role], n) for role, n in plan.counts.items()})
    gpus = {role: share.get("GPU", 0.0) for role, share in plan.share.items()}
    if plan.colocated:
        gpus = {role: float(role != "reward" and amount > 0) for role, amount in gpus.items()}
    count = sum(slot.get("GPU", 0.0) for slot in plan.slots)
    return Devices("GPU", count, {role: (gpus[role], n) for role, n in plan.counts.items()})


def cluster_nodes() -> list[Resources]:
    """The resources of each live node of the Ray cluster; in a trial of a search, of each bundle of its group."""
    import ray

    trial_group = _trial_group()
    if trial_group is not None:
        return [dict(bundle) for bundle in trial_group.bundle_specs]
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _trial_group() -> Any:
    """The placement group in which this process was started, or None."""
    from ray.util import get_current_placement_group

    return get_current_placement_group()


def with_cpu_share(nodes: Nodes, parts: int) -> list[Resources]:
    """The ``nodes`` with one of ``parts`` equal shares of each one's CPUs."""
    return [{name: amount / parts if name == "CPU" else amount for name, amount in node.items()} for node in nodes]
