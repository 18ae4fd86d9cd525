"""TRL's GRPOTrainer, one step a line. The argument is JSON: model, prompts, kind of lengths, precision, sizes, fixed batch."""

import json
import sys

import torch
import trl
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.benchmarks import workload
from tests.benchmarks.peers.common import FOREVER, Gate, arguments, force_lengths, serve
from tests.benchmarks.reward import reward


def padded(rows, value, left=False):
    """Rows of unequal length as a tensor."""
    width = max(map(len, rows))
    return torch.tensor([[value] * (width - len(r)) + r if left else r + [value] * (width - len(r)) for r in rows])


def check(trainer, fixed):
    """Loss and gradient norm on the fixed batch, by the trainer's own loss; no step is taken."""
    prompt, response = padded(fixed["prompt"], 0, left=True), padded(fixed["response"], 0)
    mask = padded([[1] * len(r) for r in fixed["response"]], 0)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    inputs = {
        "prompt_ids": prompt, "prompt_mask": torch.ones_like(prompt), "completion_ids": response, "completion_mask": mask,
        "advantages": torch.tensor(fixed["advantages"]), "old_per_token_logps": padded(fixed["old_log_probs"], 0.0),
        "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    inputs = {k: v.to(trainer.model.device) for k, v in inputs.items()}
    with trainer.accelerator.autocast():
        loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in trainer.model.parameters() if p.grad is not None])
    trainer.model.zero_grad()
    trainer._metrics["train"].clear()
    return {"loss": float(loss.detach()), "grad_norm": float(norm)}


def main():
    """Builds the trainer, compares on the fixed batch, then serves."""
    spec, gate = json.loads(sys.argv[1]), Gate()
    samples, longest, micro = spec["samples"], spec["longest"], spec["micro"]
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32)
    config = trl.GRPOConfig(
        **arguments(spec["precision"]), max_steps=FOREVER, per_device_train_batch_size=micro,
        gradient_accumulation_steps=samples // micro, steps_per_generation=samples // micro,
        num_generations=spec["group"], max_completion_length=longest, temperature=1.0, beta=0.0, loss_type="grpo",
        epsilon=0.2, num_iterations=1,
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        model, reward, config, load_dataset("json", data_files=spec["prompts"], split="train"),
        processing_class=AutoTokenizer.from_pretrained(spec["model"]),
    )  # fmt: skip
    force_lengths(trainer.model, workload.lengths(spec["kind"], samples, longest))
    found = check(trainer, spec["fixed"])

    def describe(logs):
        return {"tokens": logs["completions/mean_length"] * samples, "loss": logs["loss"]}

    serve(trainer, gate, describe, trl=trl.__version__, check=found)


if __name__ == "__main__":
    main()
