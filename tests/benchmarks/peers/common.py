"""What the peers share: threads, arguments that make both sides do the same work, the gate, and forced lengths."""

import contextlib
import functools
import os

import torch
from transformers import LogitsProcessor, LogitsProcessorList, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from tests.benchmarks import workload
from tests.benchmarks.gate import Finished, Gate

FOREVER = 1_000_000


def arguments(precision, **more):
    """Training arguments: one process, AdamW as ours, no checkpoints, no gradient checkpointing, metrics every step."""
    return {
        "output_dir": str(workload.ROOT / "trl"), "use_cpu": not torch.cuda.is_available(), "bf16": precision == "bfloat16", "seed": 0,
        "learning_rate": 1e-6, "lr_scheduler_type": "constant", "adam_beta2": 0.95, "weight_decay": 0.0, "max_grad_norm": 1.0,
        "gradient_checkpointing": False, "save_strategy": "no", "report_to": "none", "logging_steps": 1, "disable_tqdm": True,
        "dataloader_pin_memory": False, **more,
    }  # fmt: skip


class AtTheGate(TrainerCallback):
    """Answers when a step's metrics are logged, the last thing a trainer does in it."""

    def __init__(self, gate, describe, **first):
        self.gate, self.describe, self.first = gate, describe, first

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.gate(**self.first, **self.describe(logs), metrics={k: v for k, v in logs.items() if isinstance(v, float)})


def serve(trainer, gate, describe, **first):
    """Trains a step for each line until there are no more."""
    torch.set_num_threads(os.cpu_count() or 1)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(AtTheGate(gate, describe, **first))
    with contextlib.suppress(Finished):
        trainer.train()


def supervised(trainer, gate, **first):
    """Serves a trainer whose logs count tokens from its start."""
    seen = [0.0]

    def describe(logs):
        tokens, seen[0] = logs["num_tokens"] - seen[0], logs["num_tokens"]
        return {"tokens": tokens, "check": {"loss": logs["loss"], "grad_norm": logs["grad_norm"]}}

    serve(trainer, gate, describe, **first)


class ForcedLengths(LogitsProcessor):
    """Ends row i with its i-th length: no end token before, nothing else then. Two small writes a decode step."""

    def __init__(self, sizes):
        self.sizes = torch.tensor(sizes)

    def __call__(self, input_ids, scores):
        self.sizes = self.sizes.to(input_ids.device)
        over = self.sizes == input_ids.shape[1] - workload.PROMPT + 1
        scores[:, workload.EOS] = -torch.inf
        scores[over] = -torch.inf
        scores[over, workload.EOS] = 0.0
        return scores


def force_lengths(model, sizes):
    """Makes ``model.generate`` give row i of every batch its i-th length."""
    model.generate = functools.partial(model.generate, logits_processor=LogitsProcessorList([ForcedLengths(sizes)]))


__all__ = ["FOREVER", "Gate", "arguments", "force_lengths", "serve", "supervised"]
