"""TRL's SFTTrainer on one batch again and again, one optimizer step a line."""

import json
import sys

import torch
import trl
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.benchmarks.peers.common import FOREVER, Gate, arguments, serve


def main():
    """Builds the trainer, then serves."""
    spec, gate = json.loads(sys.argv[1]), Gate()
    config = trl.SFTConfig(
        **arguments(spec["precision"]), max_steps=FOREVER, per_device_train_batch_size=spec["micro"],
        gradient_accumulation_steps=spec["samples"] // spec["micro"], padding_free=spec["packed"],
        max_length=None if spec["packed"] else spec["longest"],
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32), config,
        train_dataset=load_dataset("json", data_files=spec["rows"], split="train"),
        processing_class=AutoTokenizer.from_pretrained(spec["model"]),
    )  # fmt: skip
    seen = [0.0]

    def describe(logs):
        tokens, seen[0] = logs["num_tokens"] - seen[0], logs["num_tokens"]
        return {"tokens": tokens, "check": {"loss": logs["loss"], "grad_norm": logs["grad_norm"]}}

    serve(trainer, gate, describe, trl=trl.__version__)


if __name__ == "__main__":
    main()
