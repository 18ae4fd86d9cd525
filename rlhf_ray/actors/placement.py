"""Placement: which actor gets which share of which device.

The arithmetic (`plan_placement`) needs no Ray, so that `rlhf-ray plan` can use it for clusters that do not exist.
`Placement` reserves a plan's slots with Ray.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from ..config import BadInput, ClusterConfig, FunctionReward, LearnerConfig, RewardsConfig, RolloutConfig, RuleReward
from ..run.usage import Devices
from .environment import ALLOCATOR, allocator_variable
from .slots import (
    Nodes,
    Resources,
    largest_share,
    separate_slots,
    shared_slots,
    slot_groups,
    tensor_parallel_slots,
    threads_of_slots,
    why_no_fit,
)

TIMEOUT_S = 120.0  # for Ray to reserve the slots of a plan


@dataclass(frozen=True, kw_only=True)
class Demand:
    """The workers that a job needs, by role.

    ``gpus_per_worker`` overrides the default of one GPU for a role: several GPUs of one node (tensor parallelism), or
    none. The user's `cluster.gpus` overrides both. With ``ahead`` above 0 rollouts and updates run at the same time.
    """

    counts: dict[str, int]
    gpus_per_worker: dict[str, float] = field(default_factory=dict)
    ahead: int = 0


def worker_demand(
    *,
    learner: LearnerConfig | None = None,
    rollout: RolloutConfig | None = None,
    rewards: RewardsConfig | None = None,
) -> Demand:
    """The demand of a job with these sections. Reward terms that are all rules or functions take no GPU."""
    counts: dict[str, int] = {}
    gpus: dict[str, float] = {}
    if learner is not None:
        counts["learner"] = learner.num_workers
    if rollout is not None:
        counts["rollout"], gpus["rollout"] = rollout.num_workers, float(rollout.engine.num_gpus)
    if rewards is not None:
        counts["reward"] = rewards.num_workers
        if all(isinstance(term, RuleReward | FunctionReward) for term in rewards.terms):
            gpus["reward"] = 0.0
    return Demand(counts=counts, gpus_per_worker=gpus, ahead=0 if rollout is None else rollout.ahead)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Worker i of a role sits in slot ``seats[role][i]`` and gets ``share[role]`` of it.

    ``slots`` holds the resources of each slot. Slots are reserved group by group, the hardest to place first: a group
    is a strategy of Ray's and the indices of its slots. ``nodes`` is the node on which each slot is expected, and
    ``threads`` the CPU threads of a worker there. A role in ``guests`` owns no GPU of its slot but uses those at these
    positions, worker by worker; its share counts them.
    """

    counts: dict[str, int]
    seats: dict[str, list[int]]
    share: dict[str, Resources]
    slots: list[Resources]
    groups: list[tuple[str, list[int]]]
    nodes: list[int]
    device: str
    configured_threads: int | None
    threads: list[int]
    colocated: bool
    guests: dict[str, list[list[int]]] = field(default_factory=dict)

    @property
    def num_threads(self) -> int:
        """CPU threads of the worker with the fewest."""
        return min(self.threads)

    def workers_on_gpu(self, slot: int) -> dict[str, int]:
        """How many workers of each role are on the fullest GPU of a slot; without the roles that use none.

        Example: two learner ranks with a GPU each and a rollout worker on both GPUs of their slot: one and one.
        """
        gpus = self.slots[slot].get("GPU", 0.0)
        used = {r: seats.count(slot) * max(1.0, self.share[r].get("GPU", 0)) for r, seats in self.seats.items()}
        return {r: math.ceil(n / gpus) for r, n in used.items() if n and gpus and self.share[r].get("GPU")}

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
        """Where the models of a role live: a role without a GPU, or without workers, is on the CPU."""
        return self.device if self.share.get(role, {}).get("GPU") or self.device == "cpu" else "cpu"


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
    width = int(gpus.get("rollout", 0))
    guests: dict[str, list[list[int]]] = {}
    if colocated and width > 1:
        seats, slots, guests = tensor_parallel_slots(counts, width)
        guests = {role: positions for role, positions in guests.items() if gpus[role]}
    else:
        seats, slots = shared_slots(counts) if colocated else separate_slots(counts, gpus)
    if device == "cpu":
        slots = [{} for _ in slots]
    needed = round(sum(slot.get("GPU", 0.0) for slot in slots))
    if needed > num_gpus:
        raise BadInput(
            f"the job needs {needed} GPUs ({counts}, colocate: {config.colocate}) and there are {num_gpus}; lower "
            "num_workers, let roles share a GPU (cluster.gpus.reward=0.5), set cluster.colocate=true or "
            "cluster.device=cpu"
        )
    groups = slot_groups(seats, slots, "SPREAD" if config.spread else "PACK")
    workers = Counter(slot for role_seats in seats.values() for slot in role_seats)
    largest = largest_share(groups, [(workers[i], slot) for i, slot in enumerate(slots)], nodes)
    if largest is None:
        raise BadInput(why_no_fit(slots, nodes))
    return Plan(
        counts=counts,
        seats=seats,
        share={role: {"CPU": largest.cpus} | ({"GPU": gpus[role]} if gpus[role] else {}) for role in counts},
        slots=largest.slots,
        groups=groups,
        nodes=largest.nodes,
        device=device,
        configured_threads=config.num_threads,
        threads=threads_of_slots(config.num_threads, seats, largest.nodes, nodes),
        colocated=colocated,
        guests=guests,
    )


def _gpus_per_worker(config: ClusterConfig, demand: Demand, device: str, colocated: bool) -> dict[str, float]:
    """GPUs of one worker of each role. Raises BadInput for what cannot be shared."""
    counts, defaults = demand.counts, demand.gpus_per_worker
    parallel = {role: gpus for role, gpus in defaults.items() if gpus > 1}
    if parallel and colocated and (device == "cpu" or "learner" not in counts):
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
    if demand.ahead and "learner" in counts and configured.get("rollout", 1):
        raise BadInput(
            f"rollout.ahead = {demand.ahead} generates while the learner trains, so both would be awake on the GPUs "
            "that they share; set cluster.colocate=false, which gives each its own, or rollout.ahead=0"
        )
    if parallel:
        return _tensor_parallel_gpus(demand, configured)
    others = [role for role in counts if role not in configured and defaults.get(role, 1)]
    left = 1.0 - sum(configured.values())
    if left < 0 or (others and left <= 0):
        raise BadInput(
            f"cluster.gpus: roles that take turns on one GPU cannot have {sum(configured.values()):g} of it together"
        )
    equal = math.floor(100 * left / len(others) + 1e-9) / 100 if others else 0.0
    return {role: float(configured.get(role, equal if role in others else 0.0)) for role in counts}


def _tensor_parallel_gpus(demand: Demand, configured: dict[str, float]) -> dict[str, float]:
    """GPUs of one worker of each role if rollout workers on several GPUs take turns with learner ranks.

    Raises BadInput if there are fewer learner ranks than GPUs that the others use.
    """
    counts, width = demand.counts, demand.gpus_per_worker["rollout"]
    reward = float(configured.get("reward", demand.gpus_per_worker.get("reward", 1)) > 0)
    gpus = {"learner": 1.0, "rollout": float(width), "reward": reward}
    if max(gpus[role] * count for role, count in counts.items()) > counts["learner"]:
        models = f" and {counts['reward']} reward" if "reward" in counts and reward else ""
        raise BadInput(
            f"colocated rollout workers on {width:g} GPUs each (tensor_parallel_size) share those of the learner "
            f"ranks, and {counts['rollout']} rollout{models} workers do not fit on "
            f"learner.num_workers = {counts['learner']} GPUs; change one of them, or set cluster.colocate=false"
        )
    return {role: gpus[role] for role in counts}


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
        self.gpu_ids: dict[int, list[str]] = {}  # slot: its GPUs, if it has guests
        self.bundles: dict[int, tuple[Any, int]] = {}  # slot: its placement group and bundle
        trial_group = _trial_group()
        if trial_group is not None:
            self.bundles = {slot: (trial_group, bundle) for slot, bundle in enumerate(plan.nodes)}
            self._find_gpus()
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
        self.plan = replace(plan, threads=self._threads())
        self._find_gpus()

    def _threads(self) -> list[int]:
        """CPU threads of the slots on the nodes where Ray has put them, which need not be those that were expected."""
        import ray
        from ray.util.placement_group import placement_group_table

        nodes = [node for node in ray.nodes() if node["Alive"]]
        numbers = {node["NodeID"]: number for number, node in enumerate(nodes)}
        tables = {group: placement_group_table(group)["bundles_to_node_id"] for group in self.groups}
        slot_nodes = [numbers[tables[group][bundle]] for _, (group, bundle) in sorted(self.bundles.items())]
        resources = [node["Resources"] for node in nodes]
        return threads_of_slots(self.plan.configured_threads, self.plan.seats, slot_nodes, resources)

    def _find_gpus(self) -> None:
        """Asks a task in each slot that has guests for the numbers of its GPUs."""
        import ray

        if not self.plan.guests:
            return
        calls = {
            slot: ray.remote(_gpu_ids)
            .options(num_cpus=0, num_gpus=self.plan.slots[slot]["GPU"], scheduling_strategy=self._strategy(slot))
            .remote()
            for slot in self.bundles
        }
        self.gpu_ids = {slot: ray.get(call, timeout=TIMEOUT_S) for slot, call in calls.items()}

    def _strategy(self, slot: int) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        group, bundle = self.bundles[slot]
        return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)

    def num_threads(self, role: str, index: int) -> int:
        """CPU threads of a worker."""
        return self.plan.threads[self.plan.seats[role][index]]

    def options(self, role: str, index: int) -> dict[str, Any]:
        """Ray actor options of worker ``index`` of ``role``."""
        share, slot = self.plan.share[role], self.plan.seats[role][index]
        env_vars = {"OMP_NUM_THREADS": str(self.num_threads(role, index)), "TOKENIZERS_PARALLELISM": "false"}
        if share.get("GPU"):
            env_vars |= allocator_variable(role, os.environ.get(ALLOCATOR, ""))
        if role in self.plan.guests:
            gpus = [self.gpu_ids[slot][position] for position in self.plan.guests[role][index]]
            env_vars |= {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": ",".join(gpus)}
        return {
            "num_cpus": share["CPU"],
            "num_gpus": 0 if role in self.plan.guests else share.get("GPU", 0),
            "scheduling_strategy": self._strategy(slot),
            "runtime_env": {"env_vars": env_vars},
        }

    def remove(self) -> None:
        """Gives the resources back."""
        from ray.util.placement_group import remove_placement_group

        for group in self.groups:
            remove_placement_group(group)


def _gpu_ids() -> list[str]:
    """The GPUs that Ray has assigned to the task, as CUDA_VISIBLE_DEVICES names them."""
    import ray

    return sorted(map(str, ray.get_gpu_ids()), key=lambda name: (len(name), name))


def reserved_devices(plan: Plan, nodes: Nodes) -> Devices:
    """The devices that a plan reserves: GPUs, or on CPUs the workers' threads, at most all cores of the ``nodes``.

    A colocated worker has the whole GPU of its slot in its turn. A reward worker counts as idle if it runs rules
    (which wait for rollouts) or is colocated (its models share a turn with the rollouts).
    """
    if plan.device == "cpu":
        cores = sum(node.get("CPU", 0.0) for node in nodes)
        count = min(cores, float(sum(plan.threads)))
        threads = {role: 0.0 if role == "reward" else float(plan.num_threads) for role in plan.counts}
        return Devices("CPU", count, {role: (threads[role], n) for role, n in plan.counts.items()})
    gpus = {role: share.get("GPU", 0.0) for role, share in plan.share.items()}
    if plan.colocated:
        gpus = {role: max(1.0, amount) if role != "reward" and amount else 0.0 for role, amount in gpus.items()}
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
