"""What our learner computes on a fixed batch, to be compared with what a peer does: a child process that answers once."""

import contextlib
import json
import os
import socket
import sys

import numpy as np
import torch

from rlhf_ray.algorithms.estimate import estimate_advantages
from rlhf_ray.batch import from_sequences
from rlhf_ray.config import LearnerConfig, ModelConfig, ModelReward
from rlhf_ray.config.algorithm import GRPO, PPO
from rlhf_ray.data.tokenizer import load_tokenizer
from rlhf_ray.learner.objectives import LossTerm
from rlhf_ray.learner.policy import PolicyObjective, ValueObjective
from rlhf_ray.learner.worker import LearnerWorker, Role
from rlhf_ray.rewards.model import ModelScorer
from rlhf_ray.rewards.reward import ScorerContext
from rlhf_ray.run.metrics import means_of
from tests.benchmarks import workload
from tests.benchmarks.gate import Finished, Gate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def learner(roles):
    """A learner of one rank in this process."""
    worker = LearnerWorker(
        config=LearnerConfig(micro_batch_tokens=4096),
        roles=roles,
        device=DEVICE,
        num_threads=os.cpu_count() or 1,
        deadline_s=600.0,
    )
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
        prompt_length=[workload.PROMPT] * len(pairs), group=np.arange(len(pairs)),  # each has a prompt of its own
        old_log_probs=old, rollout_log_probs=old,
        advantages=[np.r_[zeros, np.full(len(r), a)] for (_, r), a in zip(pairs, fixed["advantages"], strict=True)],
    )  # fmt: skip


def whole_batch(objective, batch):
    """One optimizer step of ``objective`` on all rows."""
    return LossTerm(objective=objective, coef=1.0, batch=batch, rows=[np.arange(len(batch))])


def policy_objective(config, kl_coef, longest):
    """The policy loss at temperature 1, without importance weights."""
    return PolicyObjective(
        config=config, kl_coef=kl_coef, temperature=1.0, max_new_tokens=longest, use_importance_weights=False
    )


def grpo(spec):
    """GRPO's loss and gradient norm on the fixed batch."""
    batch = rollouts(spec["fixed"])
    objective = policy_objective(GRPO(), 0.0, spec["longest"])
    worker = learner(
        [Role(name="actor", kind="policy", model=ModelConfig(path=spec["model"], dtype=spec["precision"]), lr=1e-6)]
    )
    found = means_of(worker.update("actor", [whole_batch(objective, batch)]))
    return {"loss": found["policy/loss"], "grad_norm": found["actor/grad_norm"]}


def ppo(spec):
    """PPO's first update on responses that end in the end token: mean score, the critic's loss, both gradient norms."""
    whole = [np.array(w, np.int32) for w in spec["whole"]]
    mask = [np.r_[np.zeros(workload.PROMPT), np.ones(len(w) - workload.PROMPT)] for w in whole]
    batch = from_sequences(
        whole, response_mask=mask, prompt_length=[workload.PROMPT] * len(whole), group=np.arange(len(whole))
    )
    term = ModelReward(name="model", path=spec["reward"], standardise=False)
    tokenizer = load_tokenizer(ModelConfig(path=spec["model"]), spec["model"])
    scores = ModelScorer(term, ScorerContext(tokenizer=tokenizer, device=DEVICE, prints=None))(batch, [], [])
    policy, critic = (ModelConfig(path=spec[k], dtype=spec["precision"]) for k in ("model", "reward"))
    roles = [
        Role(name="actor", kind="policy", model=policy, lr=1e-6),
        Role(name="critic", kind="scalar", model=critic, lr=1e-6, zero_head=True),
        Role(name="reference", kind="policy", model=policy, lr=None),
    ]
    worker, a = learner(roles), PPO(dual_clip=None)
    for columns in (["old_log_probs", "ref_log_probs"], ["values"]):
        part = worker.annotate(batch, 1.0, columns)
        order = np.argsort(
            np.repeat(part.pop("rows"), batch.lengths[0]), kind="stable"
        )  # all sequences are of one length
        batch = batch.replace(**{k: v[order] for k, v in part.items() if k != "final_values"})
    batch = batch.replace(rewards=scores, rollout_log_probs=batch.old_log_probs, truncated=np.zeros(len(whole)))
    batch, _ = estimate_advantages(batch, a, 0.05, spec["longest"])
    objectives = {
        "critic": ValueObjective(a.value_clip),
        "actor": policy_objective(a, 0.05, spec["longest"]),
    }
    found = {}
    for role, objective in objectives.items():
        found |= means_of(worker.update(role, [whole_batch(objective, batch)]))
    return {
        "score": float(scores.mean()), "value_loss": found["value/loss"], "policy_grad_norm": found["actor/grad_norm"],
        "value_grad_norm": found["critic/grad_norm"],
    }  # fmt: skip


CHECKS = {"grpo": grpo, "ppo": ppo}


def main():
    """Answers CHECKS[first argument] of the second (JSON)."""
    gate = Gate()
    with contextlib.suppress(Finished):
        gate(**CHECKS[sys.argv[1]](json.loads(sys.argv[2])))


if __name__ == "__main__":
    main()
