"""TRL's PPOTrainer (1.12 is the last with one), one step a line.

Its first step is not timed and is what both sides are compared on: the sampled responses are made full length, with an end
token last and none before, their logits are those of a plain forward, and the answer holds the tokens and what came of them.
"""

import json
import sys

import torch
import trl
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from tests.benchmarks import workload
from tests.benchmarks.peers.common import FOREVER, Gate, arguments, force_lengths, serve


class Generation:
    """Stands in for the trainer's batch_generation: the first time fixed up for the comparison, later as it is, counted."""

    def __init__(self):
        self.original, self.tokens, self.first = ppo_trainer.batch_generation, 0, None

    def __call__(self, model, *rest):
        whole, logits = self.original(model, *rest)
        response = whole[:, workload.PROMPT :]
        if self.first is None:
            response[response < 3] = 5
            response[:, -1] = workload.EOS
            self.first = whole.tolist()
            logits = model(whole).logits[:, workload.PROMPT - 1 : -1]
        ended = (response == workload.EOS).int().cumsum(1) - (response == workload.EOS).int()
        self.tokens = int((ended == 0).sum())
        return whole, logits


def norms(trainer, scale):
    """Registers a hook that keeps the gradient norms of the first update: policy, and critic without the loss's coefficient."""
    found = {}

    def hook(optimizer, *_):
        if not found:
            for name in ("policy", "value_model"):
                parts = [p.grad for p in getattr(trainer.model, name).parameters() if p.grad is not None]
                found[name] = float(torch.nn.utils.get_total_norm(parts)) / (scale if name == "value_model" else 1.0)

    trainer.optimizer.optimizer.register_step_pre_hook(hook)
    return found


def build(spec):
    """The trainer: policy, reference, reward model and critic, the critic's head at zero as ours."""
    tokens = AutoTokenizer.from_pretrained(spec["model"])
    dtype = getattr(torch, spec["precision"])
    policy, reference = (AutoModelForCausalLM.from_pretrained(spec["model"], dtype=dtype) for _ in range(2))
    reward, critic = (
        AutoModelForSequenceClassification.from_pretrained(spec["reward"], num_labels=1, dtype=dtype) for _ in range(2)
    )
    torch.nn.init.zeros_(critic.score.weight)
    samples, micro = spec["samples"], spec["micro"]
    config = PPOConfig(
        **arguments("float32"), total_episodes=FOREVER * samples, per_device_train_batch_size=micro,
        gradient_accumulation_steps=samples // micro, num_mini_batches=1, num_ppo_epochs=spec["epochs"],
        local_rollout_forward_batch_size=samples, response_length=spec["longest"], stop_token="eos", temperature=1.0,
        kl_coef=0.05, vf_coef=0.1, cliprange=0.2, cliprange_value=0.2, gamma=1.0, lam=0.95, num_sample_generations=0,
    )  # fmt: skip
    rows = load_dataset("json", data_files=spec["prompts"], split="train")
    rows = rows.map(lambda r: {"input_ids": tokens(r["prompt"])["input_ids"]}, remove_columns=["prompt"])
    force_lengths(policy, workload.lengths(spec["kind"], samples, spec["longest"]))
    return PPOTrainer(config, tokens, policy, reference, reward, rows, critic), config


def main():
    """Builds the trainer, then serves; the first answer says what its first step computed."""
    spec, gate = json.loads(sys.argv[1]), Gate()
    trainer, config = build(spec)
    ppo_trainer.batch_generation = generation = Generation()
    first = norms(trainer, config.vf_coef)

    def describe(logs):
        found = {"tokens": generation.tokens}
        if trainer.state.global_step == 1:
            found |= {"whole": generation.first, "check": {
                "score": logs["objective/scores"], "value_loss": logs["loss/value_avg"],
                "policy_grad_norm": first["policy"], "value_grad_norm": first["value_model"],
            }}  # fmt: skip
        return found

    serve(trainer, gate, describe, trl=trl.__version__)


if __name__ == "__main__":
    main()
