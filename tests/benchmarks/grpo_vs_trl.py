"""A GRPO step against TRL: generate, score, one optimizer step, weights back to the engine.

Same random 6.6M-parameter Llama, prompts of 16 tokens, 8 samples each, 64 samples a step, forced response lengths up to 128
(TRL's by a logits processor, ours by the requests' limits), the same reward function on decoded text, no KL, AdamW, one
update. float32 is float32 on both sides; bfloat16 is TRL's default (float32 weights under autocast) against bfloat16 model and
engine with DeepSpeed's float32 master weights. TRL 1.16 scores with a fused head that on CPUs falls back to slow code;
1.14 has plain logits of the completion, so both are compared. Before the timing both sides compute loss and gradient norm of
one fixed batch.
"""

import itertools

from tests.benchmarks import workload
from tests.benchmarks.duel import Rival, arguments, duel
from tests.benchmarks.paired import report
from tests.benchmarks.sides import check

GROUP, LR = 8, 1e-6
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}


def job(size, vocab, precision):
    """Our job of the benchmark."""
    count = size.samples // GROUP
    return {
        "job": "ppo",
        "model": {"path": workload.model(size.shape, vocab), "dtype": precision, "compile": size is workload.LARGE},
        "data": {"path": workload.prompts(vocab), "max_prompt_tokens": workload.PROMPT},
        "algorithm": {"type": "grpo", "group_size": GROUP, "importance": "off"},
        "rollout": {
            "prompts_per_step": count, "chunk_prompts": count, "max_new_tokens": size.longest,
            "engine": {"dtype": precision, "max_rows": size.samples},
        },
        "rewards": {"terms": [{"name": "even", "type": "function", "path": "tests/benchmarks/reward.py:reward"}]},
        "learner": {"lr": LR, "micro_batch_tokens": size.tokens},
        "cluster": {"colocate": False, "gpus": {"learner": 0.5, "rollout": 0.5, "reward": 0}} if size is workload.LARGE else {},
        "num_steps": 1_000_000,
    }  # fmt: skip


def compare(size, vocab, kind, precision, rounds):
    """Rows of one case, one for each version of TRL."""
    spec = {
        "model": workload.model(size.shape, vocab), "prompts": workload.prompts(vocab), "kind": kind, "group": GROUP,
        "precision": precision, "samples": size.samples, "longest": size.longest, "micro": size.micro,
        "fixed": workload.fixed(vocab, 16, size.longest),
    }  # fmt: skip
    mine = check("grpo", spec)
    rivals = [Rival(f"TRL {trl}", "grpo", trl, spec) for trl in ("1.16", "1.14")]
    case = f"V={vocab}, {kind}, {precision}"
    return duel(case, job(size, vocab, precision), rivals, lambda *_: mine, TOLERANCE[precision], rounds, kind)


def main():
    args, size = arguments(__doc__)
    rows = []
    for vocab, kind, precision in itertools.product(args.vocab, args.kind, args.precision):
        rows += compare(size, vocab, kind, precision, args.rounds)
    report("grpo against trl: seconds of a step", rows)


if __name__ == "__main__":
    main()
