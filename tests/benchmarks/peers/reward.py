"""TRL's RewardTrainer on one batch of pairs again and again, one optimizer step a line."""

import json
import sys

import torch
import trl
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.benchmarks.peers.common import FOREVER, Gate, arguments, supervised


def main():
    """Builds the trainer, then serves."""
    spec, gate = json.loads(sys.argv[1]), Gate()
    config = trl.RewardConfig(
        **arguments(spec["precision"]), max_steps=FOREVER, per_device_train_batch_size=spec["micro"],
        gradient_accumulation_steps=spec["samples"] // spec["micro"], max_length=spec["longest"],
    )  # fmt: skip
    trainer = trl.RewardTrainer(
        AutoModelForSequenceClassification.from_pretrained(spec["model"], num_labels=1, dtype=torch.float32), config,
        train_dataset=load_dataset("json", data_files=spec["rows"], split="train"),
        processing_class=AutoTokenizer.from_pretrained(spec["model"]),
    )  # fmt: skip
    supervised(trainer, gate, trl=trl.__version__)


if __name__ == "__main__":
    main()
