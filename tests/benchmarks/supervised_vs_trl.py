"""Supervised fine-tuning and reward models against TRL 1.16: one optimizer step on the same batch again and again.

Same random 6.6M-parameter Llama (for rewards with a scalar head), 64 examples of 16 prompt tokens and exponential lengths up to
256 in all, AdamW. SFTTrainer pads by default; with padding_free it flattens each micro-batch. bfloat16 as in grpo_vs_trl.
Loss and gradient norm of the first step must agree, and so must the tokens of every step.
"""

import itertools

from tests.benchmarks import workload
from tests.benchmarks.duel import Rival, arguments, duel
from tests.benchmarks.paired import report

LR = 1e-6
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
LOSS = {"sft": "loss/cross_entropy", "reward": "loss/bradley_terry"}


def job(what, size, rows, vocab, precision):
    """Our job of the benchmark: ``what`` is sft or reward."""
    return {
        "job": what,
        "model": {
            "path": workload.model(size.shape, vocab, "policy" if what == "sft" else "reward"),
            "dtype": precision,
        },
        "data": {"path": rows},
        "learner": {"lr": LR, "micro_batch_tokens": 4096},
        "batch_size": size.samples,
        "max_length": 2 * size.longest,
        "num_steps": 1_000_000,
    }


def compare(what, size, vocab, precision, rounds):
    """Rows of one case: for sft against the padded and the flattened batches, for rewards against the padded ones."""
    rows = workload.examples(vocab, what, size.samples, 2 * size.longest)
    ours = job(what, size, rows, vocab, precision)
    spec = {
        "model": ours["model"]["path"], "rows": rows, "precision": precision, "samples": size.samples, "micro": size.micro,
        "longest": 2 * size.longest,
    }  # fmt: skip
    rivals = [Rival("TRL 1.16, padded", what, "1.16", spec | {"packed": False})]
    if what == "sft":
        rivals.append(Rival("TRL 1.16, padding-free", what, "1.16", spec | {"packed": True}))

    def computed(mine, _):
        return {"loss": mine["metrics"][LOSS[what]], "grad_norm": mine["metrics"]["actor/grad_norm"]}

    return duel(f"{what}, V={vocab}, {precision}", ours, rivals, computed, TOLERANCE[precision], rounds)


def main():
    args, size = arguments(__doc__)
    rows = []
    for what, vocab, precision in itertools.product(("sft", "reward"), args.vocab, args.precision):
        rows += compare(what, size, vocab, precision, args.rounds)
    report("supervised against trl: seconds of a step", rows)


if __name__ == "__main__":
    main()
