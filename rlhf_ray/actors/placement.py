"""Placement: which actor gets which share of which device. Colocated roles take turns on a slot; others own one each.

:func:`plan` is arithmetic on what nodes have and needs no Ray, so that `rlhf-ray plan` can say it too; :class:`Placement` makes it real.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import Answers, BadInput, ClusterConfig, Reward, RLJob, RolloutConfig, RuleReward, Supervised
from ..run.usage import Devices

Resources = dict[str, float]


@dataclass(frozen=True)
class Plan:
    """Worker i of a role sits in slot ``seats[role][i]`` with ``share[role]`` of it.

    ``slots`` are reserved group by group: a group is a strategy of Ray's and its slots, the hardest to place first. ``nodes`` is where
    each slot is expected.
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
        wide = {role: f" ({share['GPU']:g} GPUs each)" for role, share in self.share.items() if share.get("GPU", 0) > 1}
        roles = ", ".join(f"{n} {role}{wide.get(role, '')}" for role, n in self.counts.items())
        kinds = Counter(" + ".join(f"{v:g} {k}" for k, v in slot.items()) for slot in self.slots)
        where = " and ".join(f"{n} slots of {kind}" for kind, n in kinds.items())
        shares = "; ".join(
            f"{role} " + " + ".join(f"{v:g} {k}" for k, v in share.items()) for role, share in self.share.items()
        )
        found = [f"placement: {roles} on {where} ({shares}), {self.num_threads} threads each ({self.device})"]
        return found + ([f"nodes: {self._by_node()}"] if len(set(self.nodes)) > 1 else [])

    def _by_node(self) -> str:
        there: dict[int, list[str]] = {}
        for role, seats in self.seats.items():
            for node, count in sorted(Counter(self.nodes[s] for s in seats).items()):
                there.setdefault(node, []).append(f"{count} {role}")
        kinds = Counter(", ".join(roles) for _, roles in sorted(there.items()))
        return "; ".join(f"{n} with {roles}" if n > 1 else f"one with {roles}" for roles, n in kinds.items())

    def device_of(self, role: str) -> str:
        """Where the models of a role live: a role without a GPU stays on the CPU."""
        return self.device if self.share[role].get("GPU") or self.device == "cpu" else "cpu"


def plan(
    config: ClusterConfig,
    counts: dict[str, int],
    nodes: Sequence[Mapping[str, float]],
    gpus_each: Mapping[str, float] | None = None,
) -> Plan:
    """Shares what ``nodes`` have (Ray's CPU and GPU of each) among ``counts`` workers of each role.

    ``gpus_each`` is what a worker of a role needs where ``config.gpus`` does not say: several GPUs, of one node (tensor parallelism), or
    none. Raises BadInput that says what is missing.
    """
    gpus = sum(int(n.get("GPU", 0)) for n in nodes)
    device = ("cuda" if gpus else "cpu") if config.device == "auto" else config.device
    colocated = config.colocate or device == "cpu"
    wanted = _wanted(config, counts, gpus_each or {}, device, colocated)
    seats, slots = _turns(counts) if colocated else _own(counts, wanted)
    if device == "cpu":
        slots = [{} for _ in slots]
    needed = round(sum(slot.get("GPU", 0.0) for slot in slots))
    if needed > gpus:
        raise BadInput(
            f"the job needs {needed} GPUs ({counts}, colocate: {config.colocate}) and there are {gpus}; "
            "lower num_workers, let roles share a GPU (cluster.gpus.reward=0.5), set cluster.colocate=true or cluster.device=cpu"
        )
    groups = _groups(seats, slots, "SPREAD" if config.spread else "PACK")
    workers = Counter(s for own in seats.values() for s in own)
    cpu, found = 1.0, None
    while found is None and cpu >= 0.01:
        full = [{"CPU": round(cpu * workers[i], 4), **slot} for i, slot in enumerate(slots)]
        found = _fit(groups, full, nodes)
        cpu = round(cpu - 0.01, 2)
    if found is None:
        raise BadInput(_missing(slots, nodes))
    share = {
        role: {"CPU": round(cpu + 0.01, 2)} | ({"GPU": wanted[role]} if device == "cuda" and wanted[role] else {})
        for role in counts
    }
    threads = config.num_threads or max(1, (os.cpu_count() or 1) // counts.get("learner", 1))
    return Plan(counts, seats, share, full, groups, found, device, threads, colocated)


def _wanted(
    config: ClusterConfig, counts: dict[str, int], each: Mapping[str, float], device: str, colocated: bool
) -> dict[str, float]:
    """GPUs of one worker of each role. Raises BadInput for what cannot be shared."""
    wide = {role: n for role, n in each.items() if n > 1}
    if wide and colocated:
        raise BadInput(
            f"a {' or '.join(wide)} worker on several GPUs (tensor_parallel_size) needs them for itself: "
            "set cluster.colocate=false on GPUs, or tensor_parallel_size=1"
        )
    if device == "cpu":
        return dict.fromkeys(counts, 0.0)
    said: dict[str, float] = {role: n for role, n in config.gpus.items() if role in counts}
    for role, n in said.items():
        if role in wide and n != wide[role]:
            raise BadInput(f"cluster.gpus.{role} = {n:g}, and tensor_parallel_size is {wide[role]:g}; leave it out")
    if said.get("learner", 1) != 1 and (counts["learner"] > 1 or not said["learner"]):
        raise BadInput(
            "cluster.gpus.learner: each of several learner ranks needs one GPU for itself (nccl); leave it out"
        )
    if not colocated:
        return {role: float(said.get(role, each.get(role, 1))) for role in counts}
    rest = [role for role in counts if role not in said and each.get(role, 1)]
    left = 1.0 - sum(said.values())
    if left < 0 or (rest and left <= 0):
        raise BadInput(
            f"cluster.gpus: roles that take turns on one GPU cannot have {sum(said.values()):g} of it together"
        )
    equal = math.floor(100 * left / len(rest) + 1e-9) / 100 if rest else 0.0
    return {role: float(said.get(role, equal if role in rest else 0.0)) for role in counts}


def _turns(counts: dict[str, int]) -> tuple[dict[str, list[int]], list[Resources]]:
    """Worker i of every role in slot i."""
    seats = {role: list(range(n)) for role, n in counts.items()}
    return seats, [{"GPU": 1.0} for _ in range(max(counts.values()))]


def _own(counts: dict[str, int], wanted: dict[str, float]) -> tuple[dict[str, list[int]], list[Resources]]:
    """A slot for each worker, but for those that want less than a GPU: they fill up slots of one."""
    seats: dict[str, list[int]] = {role: [] for role in counts}
    slots: list[Resources] = []
    room: dict[int, float] = {}
    for role, n in counts.items():
        for _ in range(n):
            share = wanted[role]
            at = next((s for s, left in room.items() if 0 < share < 1 and left >= share - 1e-9), None)
            if at is None:
                at = len(slots)
                slots.append({"GPU": float(max(1.0, share))} if share else {})
                if 0 < share < 1:
                    room[at] = 1.0
            if at in room:
                room[at] -= share
            seats[role].append(at)
    return seats, slots


def _groups(seats: dict[str, list[int]], slots: list[Resources], others: str) -> list[tuple[str, list[int]]]:
    """Slots of several GPUs, which must find a node whole; learner ranks, packed; and the rest."""
    learner = set(seats.get("learner", []))
    wide = [i for i, s in enumerate(slots) if s.get("GPU", 0) > 1 and i not in learner]
    rest = [i for i in range(len(slots)) if i not in learner and i not in wide]
    return [(how, which) for how, which in ((others, wide), ("PACK", sorted(learner)), (others, rest)) if which]


def _fit(
    groups: list[tuple[str, list[int]]], slots: list[Resources], nodes: Sequence[Mapping[str, float]]
) -> list[int] | None:
    """A node for each slot: packed groups fill the node with the most room first, spread ones go round. None where one finds no room."""
    free = [{k: float(n.get(k, 0.0)) for k in ("CPU", "GPU")} for n in nodes]
    places = [-1] * len(slots)
    for how, which in groups:
        used: Counter[int] = Counter()
        order = sorted(range(len(free)), key=lambda n: (-free[n]["GPU"], -free[n]["CPU"], n))
        for slot in which:
            fitting = (n for n in order if all(free[n][k] >= v - 1e-6 for k, v in slots[slot].items()))
            node = min(fitting, key=lambda n: used[n], default=None) if how == "SPREAD" else next(fitting, None)
            if node is None:
                return None
            used[node] += 1
            places[slot] = node
            for k, v in slots[slot].items():
                free[node][k] -= v
    return places


def _missing(slots: list[Resources], nodes: Sequence[Mapping[str, float]]) -> str:
    """Why nothing fits though there are GPUs enough: they are on the wrong nodes, or there are no CPUs beside them."""
    have = ", ".join(f"{n.get('GPU', 0):g} GPUs and {n.get('CPU', 0):g} CPUs" for n in nodes)
    widest = max(s.get("GPU", 0.0) for s in slots)
    need = f"{len(slots)} slots" + (f", the widest of {widest:g} GPUs of one node" if widest > 1 else "")
    return f"the job needs {need}, and its nodes have {have}: nodes with more room, or a lower tensor_parallel_size or num_workers"


class Placement:
    """A Plan made real: placement groups that live as long as the job. In a trial of a search the trial's own group, whose bundles are
    the plan's nodes, is all there is."""

    def __init__(self, what: Plan, timeout_s: float) -> None:
        import ray
        from ray.util.placement_group import placement_group

        self.plan = what
        self.groups: list[Any] = []
        self.place: dict[int, tuple[Any, int]] = {}
        if (given := _given()) is not None:
            self.place = {slot: (given, bundle) for slot, bundle in enumerate(what.nodes)}
            return
        for how, which in what.groups:
            group = placement_group([what.slots[i] for i in which], strategy=how)
            self.groups.append(group)
            self.place |= {slot: (group, bundle) for bundle, slot in enumerate(which)}
            try:
                ray.get(group.ready(), timeout=timeout_s)
            except ray.exceptions.GetTimeoutError:
                have = ray.available_resources()
                self.remove()
                raise BadInput(
                    f"Ray could not place {what.lines()[0]} in {timeout_s:.0f} s; it has free: {have}"
                ) from None

    def options(self, role: str, index: int) -> dict[str, Any]:
        """Ray actor options of worker ``index`` of ``role``."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        group, bundle = self.place[self.plan.seats[role][index]]
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


def devices(plan: Plan, nodes: Sequence[Mapping[str, float]]) -> Devices:
    """The devices that a plan reserves; on CPUs the workers' threads, at most all cores of the ``nodes``.

    Colocated workers have their slot's whole GPU in turns. Rules wait for rollouts, and a colocated reward model shares its
    turn with them: neither counts as work of its own.
    """
    if plan.device == "cpu":
        cores = sum(node.get("CPU", 0.0) for node in nodes)
        count = min(cores, float(plan.num_threads * len(plan.slots)))
        each = {role: 0.0 if role == "reward" else float(plan.num_threads) for role in plan.counts}
        return Devices("CPU", count, {role: (each[role], n) for role, n in plan.counts.items()})
    own = {
        role: 0.0 if plan.colocated and role == "reward" else share.get("GPU", 0.0)
        for role, share in plan.share.items()
    }
    if plan.colocated:
        own = {role: float(gpus > 0) for role, gpus in own.items()}
    count = sum(slot.get("GPU", 0.0) for slot in plan.slots)
    return Devices("GPU", count, {role: (own[role], n) for role, n in plan.counts.items()})


def gpus_each(rollout: RolloutConfig | None, terms: Sequence[Reward]) -> dict[str, float]:
    """What plan() must know of a job: the GPUs of one rollout worker where there are any, and that rules need none."""
    each = {} if rollout is None else {"rollout": float(rollout.engine.num_gpus)}
    return each | ({"reward": 0.0} if all(isinstance(term, RuleReward) for term in terms) else {})


def demand(job: Any) -> tuple[dict[str, int], dict[str, float]]:
    """How many workers of each role a job has, and the GPUs of one where plan() must know."""
    counts: dict[str, int] = {}
    if isinstance(job, RLJob | Supervised):
        counts["learner"] = job.learner.num_workers
    if not isinstance(job, RLJob | Answers):
        return counts, {}
    terms = [*job.rewards.terms, *(job.evaluate.terms if isinstance(job, RLJob) else [])]
    return counts | {"rollout": job.rollout.num_workers, "reward": job.rewards.num_workers}, gpus_each(
        job.rollout, terms
    )


def nodes() -> list[Resources]:
    """What each live node of the Ray cluster has; in a trial of a search, what each bundle of the trial's placement group has."""
    import ray

    if (given := _given()) is not None:
        return [dict(bundle) for bundle in given.bundle_specs]
    return [dict(n["Resources"]) for n in ray.nodes() if n["Alive"]]


def _given() -> Any:
    """The placement group that this process was started in, or None."""
    from ray.util import get_current_placement_group

    return get_current_placement_group()


def share(what: Sequence[Mapping[str, float]], parts: int) -> list[Resources]:
    """``what`` nodes have, with one of ``parts`` equal shares of each one's CPUs."""
    return [{k: v / parts if k == "CPU" else v for k, v in node.items()} for node in what]
