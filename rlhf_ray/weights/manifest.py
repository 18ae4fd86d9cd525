"""Verification of a weight sync: fingerprints of what was sent, and the log-probs of a probe sequence.

An engine that goes on sampling from old or garbled weights fails silently. So a version counts only after two checks:
the fingerprints of the buckets received against those sent, and the log-probs of a probe, engine against learner. The
probe also catches engines that fuse or repack parameters wrongly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from .messages import Bucket, WeightManifest

SAMPLED_WORDS = 64  # of 8 bytes, in each tensor
FULL_HASH_EVERY = 16  # versions
PROBE_LENGTH = 32  # tokens; the mean over fewer has too much noise


class StaleWeights(RuntimeError):
    """An engine does not hold the weights that it should hold."""


def probe_tokens(prompts: Sequence[np.ndarray], length: int = PROBE_LENGTH) -> tuple[np.ndarray, np.ndarray]:
    """Two probes (length,) int32: the first tokens of the prompts, and the last ones. Few tokens are repeated.

    Real text, because random tokens are far from what a model knows: there two correct kernels differ by tenths of a
    nat, and a mixture of experts takes other experts.
    """
    first = np.concatenate([np.asarray(p) for p in prompts[:length]])[:length]
    last = np.concatenate([np.asarray(p) for p in prompts[-length:]])[-length:]
    return np.resize(first, length).astype(np.int32), np.resize(last, length).astype(np.int32)


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


def mean_difference(log_probs: np.ndarray, learner_log_probs: np.ndarray) -> float:
    """Mean absolute difference in nats of the log-probs (T,) of a probe, engine and learner; token 0 has none."""
    return float(np.abs(log_probs[1:] - learner_log_probs[1:]).mean())


def allowed_difference(tolerance: float, first: float | None) -> float:
    """How large :func:`mean_difference` may be, in nats: ``tolerance`` at an engine's first sync.

    Later it is three times what the first sync showed (``first``), but no less than a third of ``tolerance``. So two
    implementations that agree closely are held to it, and noisy ones are not refused for their noise.
    """
    return tolerance if first is None else max(tolerance / 3, 3 * first)


def verify_probe(differences: Sequence[float], version: int, allowed: float) -> None:
    """Raises StaleWeights if the last of the mean ``differences`` of a sync exceeds ``allowed``, or is nan."""
    if not differences[-1] <= allowed:
        raise StaleWeights(
            f"version {version}: the engine's log-probs of the probes differ from the learner's by "
            f"{', '.join(f'{d:.3g}' for d in differences)} nats in the mean (allowed {allowed:.3g}; the last one after "
            "the weights were loaded again): it does not hold the weights it was sent"
        )
