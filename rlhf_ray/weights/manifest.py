"""Verification of a weight sync: fingerprints of what was sent, and the log-probs of a probe sequence.

An engine that goes on sampling from old or garbled weights fails silently. So a version counts only after two checks:
the fingerprints of the buckets received against those sent, and the log-probs of a probe, engine against learner. The
probe also catches engines that fuse or repack parameters wrongly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from .messages import Bucket, ProbeAnswer, WeightManifest

SAMPLED_WORDS = 64  # of 8 bytes, in each tensor
FULL_HASH_EVERY = 16  # versions
PROBE_LENGTH = 3  # log-probs of two tokens depend on every weight; a CPU reads half of the weights again for each more


class StaleWeights(RuntimeError):
    """An engine does not hold the weights that it should hold."""


def probe_tokens(version: int, vocab_size: int) -> np.ndarray:
    """The probe (PROBE_LENGTH,) int32 of a version: random tokens below ``vocab_size``."""
    return np.random.default_rng(version).integers(0, vocab_size, PROBE_LENGTH).astype(np.int32)


def fingerprint(bucket: Bucket, every_byte: bool) -> str:
    """Hash of names, dtypes, shapes, and of SAMPLED_WORDS words spread over each tensor or of every byte."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(bucket.tensors):
        dtype, shape, data = bucket.tensors[name]
        digest.update(f"{name}:{dtype}:{shape}".encode())
        if every_byte or len(data) <= 8 * SAMPLED_WORDS:
            digest.update(data.data)
        else:
            starts = np.linspace(0, len(data) - 8, SAMPLED_WORDS).astype(np.int64)
            digest.update(data[starts[:, None] + np.arange(8)].tobytes())
    return digest.hexdigest()


def hashes_every_byte(version: int) -> bool:
    """Whether the fingerprints of this version cover every byte: one version in FULL_HASH_EVERY."""
    return version % FULL_HASH_EVERY == 0


def verify_buckets(buckets: Sequence[Bucket], manifest: WeightManifest) -> None:
    """Raises StaleWeights if the buckets received are not those sent."""
    received = tuple(fingerprint(bucket, hashes_every_byte(manifest.version)) for bucket in buckets)
    if received != manifest.fingerprints:
        raise StaleWeights(
            f"version {manifest.version}: the buckets received have the fingerprints {received}, "
            f"those sent {manifest.fingerprints}"
        )


def verify_probe(log_probs: np.ndarray, manifest: WeightManifest, answer: ProbeAnswer) -> float:
    """Largest difference in nats between the engine's ``log_probs`` (T,) of the probe and the learner's.

    Raises StaleWeights if it exceeds the manifest's tolerance.
    """
    difference = float(np.abs(log_probs - answer.log_probs).max())
    if not difference <= manifest.tolerance:  # nan too is an error
        raise StaleWeights(
            f"version {manifest.version}: the engine's log-probs of the probe differ from the learner's by "
            f"{difference:.3g} nats (allowed {manifest.tolerance:g}): it does not hold the weights it was sent"
        )
    return difference
