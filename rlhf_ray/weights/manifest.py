"""Weights from learner to engine: packed in buckets for the object store, fingerprinted, verified by a probe.

The field's most reported silent failure is an engine that keeps sampling from old or garbled weights. So each sync is
verified before its version counts: a fingerprint of the tensors received against those sent, and the log-probs of one
fixed probe sequence, engine against learner (which also sees engines that fuse or repack parameters).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

Packed = dict[str, tuple[str, tuple[int, ...], np.ndarray]]
"""name -> (torch dtype's name, shape, bytes): numpy arrays cross Ray's object store without a copy."""

BUCKET_BYTES = 256 << 20
SAMPLED = 64
FULL_EVERY = 16


class StaleWeights(RuntimeError):
    """An engine does not hold the weights it should hold."""


@dataclass(frozen=True)
class WeightManifest:
    """What a receiver checks a sync against: a fingerprint for each bucket, and the learner's ``log_probs`` (T,) of ``probe``.

    Without ``log_probs`` it is open: the buckets are all there and may be loaded, the learner's answer is on its way.
    ``num_bytes`` is the size of the weights.
    """

    version: int
    fingerprints: tuple[str, ...]
    probe: np.ndarray
    log_probs: np.ndarray | None
    tolerance: float
    num_bytes: int = 0


@dataclass(frozen=True)
class SyncResult:
    """A verified sync: the probe's largest difference in nats, and the seconds that fingerprints and probe took the receiver,
    waiting for the learner's answer included."""

    probe_difference: float = 0.0
    verify_s: float = 0.0


def buckets(named: Iterable[tuple[str, torch.Tensor]], size: int = BUCKET_BYTES) -> Iterator[Packed]:
    """Host tensors packed in the order they come, a bucket as soon as it has ``size`` bytes.

    No more than one bucket is held here. Contiguous tensors are not copied: whoever takes a bucket copies or sends it
    before the tensors change.
    """
    bucket: Packed = {}
    filled = 0
    for name, tensor in named:
        bucket |= pack({name: tensor})
        filled += bucket[name][2].nbytes
        if filled >= size:
            yield bucket
            bucket, filled = {}, 0
    if bucket:
        yield bucket


def num_bytes(packed: Packed) -> int:
    """Bytes of all tensors."""
    return sum(data.nbytes for _, _, data in packed.values())


def pack(named: dict[str, torch.Tensor]) -> Packed:
    """Host tensors as byte arrays; no copy where a tensor is contiguous."""
    return {
        name: (str(t.dtype).removeprefix("torch."), tuple(t.shape), t.contiguous().view(-1).view(torch.uint8).numpy())
        for name, t in named.items()
    }


def unpack(packed: Packed) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors again, read-only views of the bytes."""
    for name, (dtype, shape, data) in packed.items():
        yield name, torch.frombuffer(data, dtype=getattr(torch, dtype)).view(shape)


def fingerprint(packed: Packed, full: bool) -> str:
    """Hash of names, shapes, and SAMPLED 8-byte words spread over each tensor, or of every byte."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(packed):
        dtype, shape, data = packed[name]
        digest.update(f"{name}:{dtype}:{shape}".encode())
        if full or len(data) <= 8 * SAMPLED:
            digest.update(data.data)
        else:
            starts = np.linspace(0, len(data) - 8, SAMPLED).astype(np.int64)
            digest.update(data[starts[:, None] + np.arange(8)].tobytes())
    return digest.hexdigest()


def full(version: int) -> bool:
    """Whether the sync of this version hashes every byte."""
    return version % FULL_EVERY == 0


def verify_received(received: Sequence[Packed], ticket: WeightManifest) -> None:
    """Raises StaleWeights where the buckets received are not those sent."""
    found = tuple(fingerprint(bucket, full(ticket.version)) for bucket in received)
    if found != ticket.fingerprints:
        raise StaleWeights(f"version {ticket.version}: fingerprints {found} received, {ticket.fingerprints} sent")


def verify_probe(log_probs: np.ndarray, ticket: WeightManifest) -> float:
    """Largest difference in nats between engine and learner on the probe. Raises StaleWeights beyond the tolerance."""
    if ticket.log_probs is None:
        raise StaleWeights(f"version {ticket.version}: the learner's log-probs of the probe have not come")
    difference = float(np.abs(log_probs - ticket.log_probs).max())
    if not difference <= ticket.tolerance:
        raise StaleWeights(
            f"version {ticket.version}: the engine's log-probs of the probe differ from the learner's by {difference:.3g} nats "
            f"(allowed {ticket.tolerance:g}): it does not hold the weights it was sent"
        )
    return difference
