"""What verification sees: other bytes, names, shapes and orders of buckets, and other log-probs of the probe."""

import numpy as np
import pytest
import torch

from rlhf_ray.weights.manifest import (
    FULL_HASH_EVERY,
    StaleWeights,
    fingerprint,
    hashes_every_byte,
    probe_tokens,
    verify_buckets,
    verify_probe,
)
from rlhf_ray.weights.messages import ProbeAnswer, WeightManifest, pack


def manifest(buckets=(), version=1, tolerance=1e-3):
    marks = tuple(fingerprint(bucket, hashes_every_byte(version)) for bucket in buckets)
    return WeightManifest(version=version, fingerprints=marks, probe=np.array([3, 4]), tolerance=tolerance, num_bytes=0)


def bucket(seed=0, name="w", shape=(100, 100)):
    torch.manual_seed(seed)
    return pack({name: torch.randn(10_000).view(shape), "norm": torch.ones(4)})


@pytest.mark.parametrize("version", [FULL_HASH_EVERY, 1])  # every byte; sampled words
def test_buckets_that_were_sent_pass_and_others_do_not(version):
    sent = manifest([bucket(0), bucket(1)], version)
    verify_buckets([bucket(0), bucket(1)], sent)
    for received in (
        [bucket(1), bucket(0)],
        [bucket(0)],
        [bucket(0), bucket(2)],
        [bucket(0), bucket(1, name="v")],
        [bucket(0), bucket(1, shape=(50, 200))],
    ):
        with pytest.raises(StaleWeights, match="fingerprints"):
            verify_buckets(received, sent)


def test_only_a_full_hash_sees_every_byte():
    changed = bucket()
    name, (dtype, shape, data) = next(iter(changed.tensors.items()))
    data = data.copy()
    data[12] ^= 1  # between two sampled words
    changed.tensors[name] = (dtype, shape, data)
    assert fingerprint(changed, False) == fingerprint(bucket(), False)
    assert fingerprint(changed, True) != fingerprint(bucket(), True)


def test_one_version_in_sixteen_is_hashed_in_full():
    assert [version for version in range(40) if hashes_every_byte(version)] == [0, 16, 32]


def test_a_probe_beyond_the_tolerance_is_refused_and_so_is_nan():
    learner = ProbeAnswer(1, np.array([0.0, -2.0], np.float32))
    assert verify_probe(np.array([0.0, -2.0005]), manifest(), learner) == pytest.approx(5e-4, rel=1e-3)
    for engine in ([0.0, -2.01], [0.0, np.nan]):
        with pytest.raises(StaleWeights, match="differ from the learner's"):
            verify_probe(np.array(engine), manifest(), learner)


def test_a_versions_probe_is_fixed_and_inside_the_vocabulary():
    assert np.array_equal(probe_tokens(5, 11), probe_tokens(5, 11))
    assert not np.array_equal(probe_tokens(5, 1000), probe_tokens(6, 1000))
    assert probe_tokens(5, 2).max() < 2
