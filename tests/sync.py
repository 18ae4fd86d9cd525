"""Messages of a weight sync as the learner makes them, from a model in this process."""

import numpy as np
import torch

from rlhf_ray.weights.manifest import fingerprint, hashes_every_byte
from rlhf_ray.weights.messages import BUCKET_BYTES, Begin, ProbeAnswer, WeightManifest, split_into_buckets


def sequence_log_probs(model, tokens, temperature=1.0):
    """Log-probs (T,) of a sequence's tokens, 0 for the first."""
    ids = torch.as_tensor(np.asarray(tokens), dtype=torch.long)
    with torch.no_grad():
        log_probs = (model(input_ids=ids[None]).logits[0, :-1].float() / temperature).log_softmax(-1)
    return np.r_[0.0, log_probs.gather(1, ids[1:, None]).squeeze(1).numpy()].astype(np.float32)


def sync_messages(version, model, temperature=1.0, bucket_bytes=BUCKET_BYTES):
    """All messages of a sync of ``model``, with a probe of 16 tokens below 50."""
    named = ((name, parameter.detach()) for name, parameter in model.named_parameters())
    buckets = list(split_into_buckets(named, bucket_bytes))
    probe = np.random.default_rng(version).integers(3, 50, 16).astype(np.int32)
    manifest = WeightManifest(
        version=version,
        fingerprints=tuple(fingerprint(bucket, hashes_every_byte(version)) for bucket in buckets),
        probe=probe,
        second_probe=probe[::-1].copy(),
        tolerance=1e-3,
        num_bytes=sum(bucket.num_bytes for bucket in buckets),
    )
    answers = (sequence_log_probs(model, tokens, temperature) for tokens in (probe, manifest.second_probe))
    return [Begin(version), *buckets, manifest, ProbeAnswer(version, *answers)]


def deliver(worker, messages):
    """Gives all messages to a worker; returns what it says to the last."""
    replies = [worker.receive(message) for message in messages]
    assert replies[:-1] == [None] * (len(messages) - 1)
    return replies[-1]
