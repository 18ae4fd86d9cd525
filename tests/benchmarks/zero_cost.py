"""Actors that cost nothing: the rig of driver_overhead. This module imports no torch, so that 64 of them fit a small machine."""

from types import SimpleNamespace

import numpy as np

from rlhf_ray.batch import Batch

PROMPT = RESPONSE = 16


class Engine:
    """Answers a chunk with ready-made sequences."""

    def receive(self, item):
        return SimpleNamespace(probe_difference=0.0, verify_s=0.0, num_bytes=0, misses=0)

    def generate(self, version, chunk, piece):
        per, longest = chunk.samples, PROMPT + RESPONSE
        for start in range(0, len(chunk), piece):
            rows = np.arange(start, min(start + piece, len(chunk)))
            count, prompt = len(rows), rows // per
            mask = np.tile(np.arange(longest) >= PROMPT, count)
            yield Batch(
                tokens=np.ones(count * longest), lengths=np.full(count, longest), response_mask=mask,
                prompt_length=np.full(count, PROMPT), group=np.array(chunk.group)[prompt],
                example_id=np.array(chunk.example_id)[prompt], sample=np.array(chunk.first_sample)[prompt] + rows % per,
                seed=rows, rollout_log_probs=-mask.astype(np.float32), policy_version=np.full(count, version),
                truncated=np.zeros(count),
            )  # fmt: skip

    def take_counters(self):
        return {"tokens": 0.0, "seconds": 0.0, "idle_share": 0.0}


class Scorer:
    """Scores by the sample's number."""

    def score(self, batch, rows, only=None):
        return {"reward_parts": (batch.sample % 3)[:, None]}


class Learner:
    """Annotates with what was sampled, and learns nothing."""

    def annotate(self, batch, temperature, columns):
        found = dict.fromkeys(columns, -batch.response_mask.astype(np.float32))
        return {"rows": np.arange(len(batch)), **found}

    def update_on(self, role, terms, *batches):
        return {"actor/lr": (0.0, 1.0)}

    def sync_weights(self, version, probes, temperature, tolerance, weight_names):
        yield "begin"
        yield "manifest"
        yield "answer"

    def save(self, directory):
        pass
