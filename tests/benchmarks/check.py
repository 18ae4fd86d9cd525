"""What our learner computes on a fixed batch, to be compared with what a peer does: a child process that answers once."""

import contextlib
import json
import os
import socket
import sys

import numpy as np

from rlhf_ray.batch import from_sequences
from rlhf_ray.config import LearnerConfig, ModelConfig
from rlhf_ray.config.algorithm import GRPO
from rlhf_ray.learner.objectives import PolicyObjective
from rlhf_ray.learner.worker import LearnerWorker, Role
from rlhf_ray.metrics import means
from tests.benchmarks import workload
from tests.benchmarks.gate import Finished, Gate


def learner(directory, precision, kind="policy"):
    """A learner of one rank in this process."""
    role = Role("actor", kind, ModelConfig(path=directory, dtype=precision), 1e-6)
    worker = LearnerWorker(LearnerConfig(micro_batch_tokens=4096), [role], "cpu", os.cpu_count() or 1, 600.0)
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    worker.start(0, 1, "127.0.0.1", port)
    return worker


def rollouts(fixed):
    """The Batch of workload.fixed."""
    pairs = list(zip(fixed["prompt"], fixed["response"], strict=True))
    zeros = np.zeros(workload.PROMPT)
    old = [np.r_[zeros, o] for o in fixed["old_log_probs"]]
    return from_sequences(
        [np.array(p + r) for p, r in pairs],
        response_mask=[np.r_[zeros, np.ones(len(r))] for _, r in pairs],
        prompt_length=[workload.PROMPT] * len(pairs), group=np.arange(len(pairs)) // 8,
        old_log_probs=old, rollout_log_probs=old,
        advantages=[np.r_[zeros, np.full(len(r), a)] for (_, r), a in zip(pairs, fixed["advantages"], strict=True)],
    )  # fmt: skip


def grpo(spec):
    """GRPO's loss and gradient norm on the fixed batch."""
    batch = rollouts(spec["fixed"])
    objective = PolicyObjective(GRPO(), 0.0, 1.0, spec["longest"], False)
    worker = learner(spec["model"], spec["precision"])
    found = means(worker.update("actor", [(objective, 1.0)], [[np.arange(len(batch))]], batch))
    return {"loss": found["policy/loss"], "grad_norm": found["actor/grad_norm"]}


CHECKS = {"grpo": grpo}


def main():
    """Answers CHECKS[first argument] of the second (JSON)."""
    gate = Gate()
    with contextlib.suppress(Finished):
        gate(**CHECKS[sys.argv[1]](json.loads(sys.argv[2])))


if __name__ == "__main__":
    main()
