"""A verified weight sync through real actors, as in a job, against the machine's copy bandwidth measured in turns.

`ours` is RL's sync: learner rank -> object store -> rollout worker, fingerprints and probe included; `theirs` is one
single-threaded copy of as many bytes in this process, so that the ratio is the share of the copy bandwidth. The goal is 0.5.
`cpu_s` are CPU seconds of all processes for one sync: other load on the machine hardly touches them.
"""

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_ray.actors.group import WorkerGroup
from rlhf_ray.actors.placement import Demand, Placement, cluster_nodes, plan_placement
from rlhf_ray.actors.session import ray_session
from rlhf_ray.config import ModelConfig, RLJob
from rlhf_ray.learner.worker import Role
from rlhf_ray.rollout.worker import EngineResources, RolloutWorker
from rlhf_ray.train.learner_group import LearnerGroup, sync_tolerance
from rlhf_ray.train.step_metrics import sync_metrics
from rlhf_ray.weights.manifest import PROBE_LENGTH, probe_tokens
from rlhf_ray.weights.messages import Bucket
from rlhf_ray.weights.transport import ObjectStoreTransport
from tests.benchmarks.paired import report, seconds

VOCABULARY = 16384
SHAPE = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 16}


class Probed(RolloutWorker):
    """A rollout worker that says what it holds."""

    def differs(self, *messages):
        """Names of the tensors whose bits are not those of the buckets among ``messages``."""
        parameters = self.engine.model.state_dict()
        named = [pair for message in messages if isinstance(message, Bucket) for pair in message.unpack()]
        assert named
        return [name for name, tensor in named if not torch.equal(parameters[name], tensor.to(parameters[name]))]


def cpu_seconds():
    """CPU seconds so far of this process and of all below it: Ray and the actors."""
    below = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(p.cpu_times()[:2]) for p in below)


def job(directory, threads, device):
    """A job of the model in ``directory``, one learner rank and one rollout worker."""
    return RLJob.model_validate(
        {
            "job": "ppo", "cluster": {"num_threads": threads, "device": device, "deadline_s": 600},
            "model": {"path": directory}, "data": {"path": "toy:reviews/prompts"}, "algorithm": {"type": "grpo"},
            "rewards": {"terms": [{"name": "length", "type": "rule", "rule": "word_share", "options": {"words": ["the"]}}]},
            "learner": {"optimizer": "sgd"}, "num_steps": 1,
        }
    )  # fmt: skip


def syncs(job, model, rounds):
    """Syncs ``rounds`` times, a copy of the same bytes after each; returns the seconds of both and the metrics."""
    demand = Demand(counts={"learner": 1, "rollout": 1})
    placement = Placement(plan_placement(job.cluster, demand, cluster_nodes()))
    resources = EngineResources(placement.plan.device, placement.plan.num_threads, 64)
    worker = WorkerGroup(
        "rollout",
        Probed,
        1,
        arguments=lambda i: {"config": job.rollout, "model": model, "eos": (1,), "resources": resources},
        options=lambda i: placement.options("rollout", i),
        deadline_s=600.0,
        max_restarts=0,
    )
    learners = LearnerGroup(job, [Role(name="actor", kind="policy", model=model, lr=1e-5)], placement)
    learners.start()
    transport = ObjectStoreTransport(600.0)
    probes = probe_tokens([np.random.default_rng(0).integers(0, VOCABULARY, 2 * PROBE_LENGTH)])
    source = target = None
    ours, theirs, found, cpu = [], [], [], []
    for version in range(1, rounds + 4):
        began, before = time.perf_counter(), cpu_seconds()
        transport.send(
            learners.sync_weights(version, 1.0, probes, sync_tolerance(learners.job), "transformers"), worker.actors
        )
        result = transport.receive(worker.actors[0])
        took, spent = time.perf_counter() - began, cpu_seconds() - before
        if source is None:
            source, target = np.ones(result.num_bytes, np.uint8), np.zeros(result.num_bytes, np.uint8)
        before = time.process_time()
        copied, _ = seconds(partial(np.copyto, target, source))
        if version > 3:  # the store's pages are touched for the first time in the first two
            ours.append(took)
            theirs.append(copied)
            cpu.append((spent, time.process_time() - before))
            found.append(sync_metrics([result], took))
    wrong = worker.broadcast("differs", *transport.messages)[0]
    assert not wrong, f"the worker holds other weights: {wrong[:3]}"
    learners.kill()
    worker.kill()
    placement.remove()
    return ours, theirs, found, np.median(cpu, axis=0).tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=13, help="one sync in sixteen hashes every byte")
    parser.add_argument("--layers", type=int, default=8, help="8: 0.48 GB in float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="of learner and engine")
    args = parser.parse_args()
    torch.manual_seed(0)
    settings = AutoConfig.for_model(
        "llama", vocab_size=VOCABULARY, num_hidden_layers=args.layers, tie_word_embeddings=True, **SHAPE
    )
    with tempfile.TemporaryDirectory() as directory:
        AutoModelForCausalLM.from_config(settings).save_pretrained(directory)
        model, rows = ModelConfig(path=directory), []
        made = job(directory, args.threads, args.device)
        with ray_session(made.cluster):
            ours, theirs, found, (spent, copied) = syncs(made, model, args.rounds)
        mine, other = statistics.median(ours), statistics.median(theirs)
        share = statistics.median(m["sync/verify_share"] for m in found)
        size = found[0]["sync/bytes"]
        rows.append(
            {
                "case": f"{size / 1e9:.2f} GB, float32, verified share {share:.2f}", "ours_s": mine, "theirs_s": other,
                "ours_range_s": [min(ours), max(ours)], "theirs_range_s": [min(theirs), max(theirs)],
                "ratio": other / mine, "bytes": size, "verify_share": share, "copy_bytes_per_second": size / other,
                "probe_difference": max(m["sync/probe_difference"] for m in found), "threads": args.threads,
                "cpu_s": spent, "copy_cpu_s": copied,
            }
        )  # fmt: skip
    report(
        "weight sync: bytes/s of a verified sync against one copy (ratio is the share)",
        rows,
        Path("build/benchmarks"),
    )


if __name__ == "__main__":
    main()
