"""Slots: the parts of nodes that workers sit in, and which node has room for which slot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Resources = dict[str, float]
"""Amounts by Ray's names: {"CPU": 8.0, "GPU": 1.0}."""

Nodes = Sequence[Mapping[str, float]]
"""The resources of each node."""


def shared_slots(counts: dict[str, int]) -> tuple[dict[str, list[int]], list[Resources]]:
    """Seats and slots of roles that take turns: worker i of every role sits in slot i, which is one GPU."""
    seats = {role: list(range(count)) for role, count in counts.items()}
    return seats, [{"GPU": 1.0} for _ in range(max(counts.values()))]


def tensor_parallel_slots(
    counts: dict[str, int], width: int
) -> tuple[dict[str, list[int]], list[Resources], dict[str, list[list[int]]]]:
    """Seats, slots and guests of rollout workers on ``width`` GPUs each that take turns with learner ranks.

    A slot is the GPUs of one rollout worker, of one node; each of its learner ranks owns one of them. Rollout and
    reward workers are guests: they own none, and use those at the given positions in their slot.

    Example: 4 learner ranks, 2 rollout workers on 2 GPUs and 2 reward workers sit in slots [0, 0, 1, 1], [0, 1] and
    [0, 0]; the guests' positions are [[0, 1], [0, 1]] and [[0], [1]].
    """
    num_gpus = counts["learner"]
    slots: list[Resources] = [{"GPU": float(min(width, num_gpus - first))} for first in range(0, num_gpus, width)]
    seats = {
        role: [(i if role == "rollout" else i // width) % len(slots) for i in range(count)]
        for role, count in counts.items()
    }
    guests = {role: [[i % width] for i in range(count)] for role, count in counts.items() if role == "reward"}
    return seats, slots, {"rollout": [list(range(width))] * counts["rollout"]} | guests


def separate_slots(counts: dict[str, int], gpus: dict[str, float]) -> tuple[dict[str, list[int]], list[Resources]]:
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


def slot_groups(seats: dict[str, list[int]], slots: list[Resources], strategy: str) -> list[tuple[str, list[int]]]:
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
        places = fit_slots(groups, full, nodes)
        if places is not None:
            return Share(cpus, full, places)
    return None


def fit_slots(groups: Sequence[tuple[str, list[int]]], slots: Sequence[Resources], nodes: Nodes) -> list[int] | None:
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


def why_no_fit(slots: list[Resources], nodes: Nodes) -> str:
    """Why no share fits although there are enough GPUs: they are on the wrong nodes, or their nodes lack CPUs."""
    offer = ", ".join(f"{node.get('GPU', 0):g} GPUs and {node.get('CPU', 0):g} CPUs" for node in nodes)
    widest = max(slot.get("GPU", 0.0) for slot in slots)
    need = f"{len(slots)} slots" + (f", the widest of {widest:g} GPUs of one node" if widest > 1 else "")
    return (
        f"the job needs {need}, and its nodes have {offer}; take nodes with more resources, or lower "
        "tensor_parallel_size or num_workers"
    )


def threads_of_slots(
    configured: int | None, seats: dict[str, list[int]], slot_nodes: list[int], nodes: Nodes
) -> list[int]:
    """CPU threads of a worker in each slot: the cores of its node over the learner ranks there.

    On a node without learner ranks the most numerous role counts in their place.
    """
    if configured is not None:
        return [configured] * len(slot_nodes)
    on_node = {role: Counter(slot_nodes[slot] for slot in role_seats) for role, role_seats in seats.items()}
    learners = on_node.get("learner", Counter())
    return [
        max(
            1, int(nodes[node].get("CPU", 0)) // (learners[node] or max(count[node] for count in on_node.values()) or 1)
        )
        for node in slot_nodes
    ]
