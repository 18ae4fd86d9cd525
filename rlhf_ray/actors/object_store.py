"""Whether Ray's object store has room for what a job keeps there: weights on their way, and samples."""

from __future__ import annotations

from .slots import Nodes

BATCH_BYTES_PER_TOKEN = 29  # of a Batch with all its columns
VERSIONS = 2  # the weights that rollout workers hold, and those that replace them


def smallest_store(nodes: Nodes) -> float:
    """Bytes of the smallest object store of the ``nodes``; infinite for bundles, which do not say.

    Unless it is told a size, Ray takes 30% of the memory, but at most 200 GB and no more than /dev/shm has.
    """
    return min(float(node.get("object_store_memory", "inf")) for node in nodes)


def store_remedy(num_bytes: float) -> str:
    """How to get an object store of this size."""
    gb = int(num_bytes / 1e9) + 1
    return (
        f"start Ray with --object-store-memory={gb}000000000 and a /dev/shm of at least that size "
        f"(docker run --shm-size={gb}g; Kubernetes: an emptyDir with medium: Memory and sizeLimit {gb}G)"
    )


def store_remark(model_bytes: float, num_tokens: int, nodes: Nodes) -> str | None:
    """A sentence if two versions of the weights and a step of ``num_tokens`` do not fit into a node's store, else None.

    Ray then spills to disk: the job runs, but each sync waits for the disk.
    """
    step_bytes = float(BATCH_BYTES_PER_TOKEN * num_tokens)
    needed, room = VERSIONS * model_bytes + step_bytes, smallest_store(nodes)
    if needed <= room:
        return None
    return (
        f"object store: the smallest node has room for {room / 1e9:.1f} GB, and {VERSIONS} versions of the weights "
        f"with a step's samples take up to {needed / 1e9:.1f} GB, so weight syncs will wait for the disk; "
        + store_remedy(needed)
    )
