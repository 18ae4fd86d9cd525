"""What verification sees: other bytes, names, shapes and orders of buckets, and other log-probs of the probe."""

import numpy as np
import pytest
import torch

from rlhf_ray.weights.manifest import (
    FULL_HASH_EVERY,
    PROBE_LENGTH,
    StaleWeights,
    allowed_difference,
    fingerprint,
    hashes_every_byte,
    mean_difference,
    probe_tokens,
    verify_buckets,
    verify_probe,
)
from rlhf_ray.weights.messages import WeightManifest, pack


def manifest(buckets=(), version=1, tolerance=1e-3):
    marks = tuple(fingerprint(bucket, hashes_every_byte(version)) for bucket in buckets)
    probe = np.array([3, 4])
    return WeightManifest(
        version=version, fingerprints=marks, probe=probe, second_probe=probe, tolerance=tolerance, num_bytes=0
    )


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
    learner = np.array([0.0, -2.0, -3.0], np.float32)
    difference = mean_difference(np.array([0.0, -2.001, -3.0]), learner)
    assert difference == pytest.approx(5e-4, rel=1e-3)
    verify_probe([difference], 1, 1e-3)
    verify_probe([0.5, 1e-4], 1, 1e-3)  # the second probe passed
    for differences in ([0.01, 0.01, 0.01], [0.01, np.nan]):
        with pytest.raises(StaleWeights, match="differ from the learner's"):
            verify_probe(differences, 1, 1e-3)


def test_the_bound_follows_the_first_sync():
    assert allowed_difference(0.3, None) == 0.3
    assert allowed_difference(0.3, 0.01) == pytest.approx(0.1)  # an engine that agrees closely is held to it
    assert allowed_difference(0.3, 0.2) == pytest.approx(0.6)


@pytest.mark.parametrize("seed", range(20))
def test_noise_of_a_tenth_of_a_nat_passes_a_thousand_syncs(seed):
    """By the old rule, the largest of all differences within 0.3, a run of these lengths would end."""
    noise = np.abs(np.random.default_rng(seed).normal(0.0, 0.1, (1000, PROBE_LENGTH - 1)))
    means = noise.mean(1)
    assert means[0] <= allowed_difference(0.3, None)
    assert (means[1:] <= allowed_difference(0.3, means[0])).all()
    assert noise.max() > 0.3


def test_the_probes_are_the_first_and_the_last_tokens_of_the_prompts():
    prompts = [np.array([1, 2, 3]), np.array([4]), np.array([5, 6, 7])]
    first, last = probe_tokens(prompts, 5)
    assert (first.tolist(), last.tolist()) == ([1, 2, 3, 4, 5], [3, 4, 5, 6, 7])
    assert first.dtype == last.dtype == np.int32
    assert probe_tokens([np.array([8, 9])], 5)[0].tolist() == [8, 9, 8, 9, 8]
    assert len(probe_tokens([np.arange(100)])[1]) == PROBE_LENGTH
