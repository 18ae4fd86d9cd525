"""The four messages of a weight sync, and tensors packed into buckets of bytes.

A sync is, in this order: one Begin, Buckets, one WeightManifest, one ProbeAnswer. Learner rank 0 makes the messages,
and every rollout worker receives all of them. For example, a model of 300 MB in buckets of 256 MB:

    Begin(4), Bucket(...), Bucket(...), WeightManifest(version=4, fingerprints=("5f", "c2"), ...), ProbeAnswer(4, ...)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

BUCKET_BYTES = 256 << 20

PackedTensor = tuple[str, tuple[int, ...], np.ndarray]
"""torch dtype's name, shape, and the bytes (n,) uint8: a numpy array crosses Ray's object store without a copy."""


@dataclass(frozen=True)
class Begin:
    """The weights of ``version`` follow. From now on the receiver serves no version."""

    version: int


@dataclass(frozen=True)
class Bucket:
    """Some of the tensors, by the names that the engine knows."""

    tensors: dict[str, PackedTensor]

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(data.nbytes for _, _, data in self.tensors.values())

    def unpack(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and tensor of each; the tensors are read-only views of the bytes."""
        for name, (dtype, shape, data) in self.tensors.items():
            yield name, torch.frombuffer(data, dtype=getattr(torch, dtype)).view(shape)


@dataclass(frozen=True, kw_only=True)
class WeightManifest:
    """All buckets are sent: what a receiver checks them against, before and after it loads them.

    ``fingerprints``: one for each bucket, in their order. ``probe`` (T,) int32: tokens whose log-probs the receiver
    computes with the new weights; ``second_probe``: those that it tries if it misses the first. ``tolerance``: by how
    many nats they may differ from the learner's in the mean, at a receiver's first sync. ``num_bytes``: all buckets.
    """

    version: int
    fingerprints: tuple[str, ...]
    probe: np.ndarray
    second_probe: np.ndarray
    tolerance: float
    num_bytes: int


@dataclass(frozen=True)
class ProbeAnswer:
    """The learner's ``log_probs`` (T,) float32 of the probe, and those of the second probe: the last message.

    The receiver compares them with its own.
    """

    version: int
    log_probs: np.ndarray
    second_log_probs: np.ndarray


SyncMessage = Begin | Bucket | WeightManifest | ProbeAnswer


@dataclass(frozen=True, kw_only=True)
class SyncResult:
    """A receiver's reply to the last message of a sync that it has verified.

    ``probe_difference``: the probe's mean absolute difference in nats. ``verify_s``: seconds of fingerprints and probe,
    including the wait for the learner's answer. ``num_bytes``: size of the weights. ``misses``: 1 if only the second
    probe passed, 2 if the weights were loaded again.
    """

    probe_difference: float
    verify_s: float
    num_bytes: int
    misses: int = 0


def pack(named: Mapping[str, torch.Tensor]) -> Bucket:
    """Host tensors as one bucket. A contiguous tensor is not copied."""
    return Bucket(
        {
            name: (
                str(tensor.dtype).removeprefix("torch."),
                tuple(tensor.shape),
                tensor.contiguous().view(-1).view(torch.uint8).numpy(),
            )
            for name, tensor in named.items()
        }
    )


def split_into_buckets(named: Iterable[tuple[str, torch.Tensor]], size: int = BUCKET_BYTES) -> Iterator[Bucket]:
    """Host tensors in their order; a bucket comes as soon as it has ``size`` bytes or more, so only one is held here.

    Contiguous tensors are not copied: a bucket must be copied or sent before its tensors change.

    With ``size`` 100, tensors of 60, 80 and 30 bytes become buckets of 140 and 30 bytes.
    """
    tensors: dict[str, torch.Tensor] = {}
    num_bytes = 0
    for name, tensor in named:
        tensors[name] = tensor
        num_bytes += tensor.nbytes
        if num_bytes >= size:
            yield pack(tensors)
            tensors, num_bytes = {}, 0
    if tensors:
        yield pack(tensors)
