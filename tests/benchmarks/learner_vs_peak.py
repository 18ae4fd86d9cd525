"""The learner alone, one rank: FLOP/s of real tokens against the machine's measured matrix-product peak in the same precision."""

import argparse
import itertools
import os
import socket
import tempfile
from functools import partial

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_ray.batch import from_sequences
from rlhf_ray.config import LearnerConfig, ModelConfig
from rlhf_ray.config.algorithm import GRPO
from rlhf_ray.learner.mfu import peak_flops
from rlhf_ray.learner.objectives import LossTerm
from rlhf_ray.learner.policy import PolicyObjective
from rlhf_ray.learner.worker import LearnerWorker, Role
from rlhf_ray.models.load import DTYPES
from rlhf_ray.run.metrics import means_of
from tests.benchmarks.paired import report, seconds
from tests.benchmarks.rollout_vs_generate import SHAPES, lengths, machine


def batch(count, longest, kind, vocab):
    """Annotated rollouts of random tokens: prompts of 16 with 8 responses each, of equal or skewed length."""
    draw, sizes = np.random.default_rng(0), lengths(kind, count, longest)
    mask = [np.r_[np.zeros(16), np.ones(n)] for n in sizes]
    prompts = draw.integers(3, vocab, (-(-count // 8), 16))
    tokens = [np.r_[prompts[i // 8], draw.integers(3, vocab, n)] for i, n in enumerate(sizes)]
    zeros = [np.full(16 + n, -3.0) for n in sizes]
    return from_sequences(
        tokens, response_mask=mask, prompt_length=[16] * count, group=np.arange(count) // 8, old_log_probs=zeros,
        rollout_log_probs=zeros, advantages=[draw.normal(size=16 + n) for n in sizes],
    )  # fmt: skip


def measure(worker, rollouts, longest, rounds, dtype):
    """Medians of seconds and MFU of a GRPO step; the peak is measured anew before each."""
    objective = PolicyObjective(
        config=GRPO(), kl_coef=0.0, temperature=1.0, max_new_tokens=longest, use_importance_weights=False
    )
    term = LossTerm(objective=objective, coef=1.0, batch=rollouts, rows=[np.arange(len(rollouts))])
    steps = []
    for _ in range(rounds + 1):
        worker.peak_flops = peak_flops(worker.device, dtype)
        spent, sums = seconds(partial(worker.update, "actor", [term]))
        steps.append((spent, means_of(sums)["actor/mfu"]))
    return tuple(np.median(steps[1:], axis=0).tolist())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=64, help="sequences of a step")
    parser.add_argument("--longest", type=int, default=240, help="response tokens")
    parser.add_argument("--vocab", type=int, nargs="+", default=[2048, 32000])
    parser.add_argument("--budget", type=int, default=4096, help="tokens of a micro-batch")
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing; MFU does not count its work")
    parser.add_argument("--compile", type=int, nargs="+", choices=[0, 1], default=[0], help="model.compile")
    args = machine(parser, ["1M", "6.6M"])
    threads, rows = os.cpu_count() or 1, []
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    for name, vocab, dtype, compiled in itertools.product(args.shape, args.vocab, args.dtype, args.compile):
        torch.manual_seed(0)
        shape = SHAPES[name]
        config = AutoConfig.for_model(
            "llama",
            vocab_size=vocab,
            num_key_value_heads=shape["num_attention_heads"],
            tie_word_embeddings=True,
            **shape,
        )
        with tempfile.TemporaryDirectory() as directory:
            with torch.device(args.device):  # a GPU draws a billion numbers at once
                AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype]).save_pretrained(directory)
            model = ModelConfig(
                path=directory, dtype=dtype, gradient_checkpointing=args.recompute, compile=bool(compiled)
            )
            worker = LearnerWorker(
                config=LearnerConfig(micro_batch_tokens=args.budget),
                roles=[Role(name="actor", kind="policy", model=model, lr=1e-5)],
                device=args.device,
                num_threads=threads,
                deadline_s=600.0,
            )
            worker.start(0, 1, "127.0.0.1", port)
        for kind in ("equal", "skewed"):
            rollouts = batch(args.count, args.longest, kind, vocab)
            took, mfu = measure(worker, rollouts, args.longest, args.rounds, DTYPES[dtype])
            case = f"{name}, vocabulary {vocab}, {kind} lengths, {dtype}" + (", compiled" if compiled else "")
            tokens = int(rollouts.lengths.sum())
            rows.append({"case": case, "ours_s": took, "theirs_s": took * mfu, "ratio": mfu, "tokens": tokens})
    report("learner: step against the matrix-product peak (ratio is MFU)", rows)


if __name__ == "__main__":
    main()
