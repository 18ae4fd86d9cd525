"""A GRPO step against TRL: generate, score, one optimizer step, weights back to the engine. Benchmark 1.

Same random 6.6M-parameter Llama, prompts of 16 tokens, 8 samples each, 64 samples a step, forced response lengths up to 128
(TRL's by a logits processor, ours by the requests' limits), the same reward function on decoded text, no KL, AdamW.
float32 is float32 on both sides; bfloat16 is TRL's default (float32 weights under autocast) against bfloat16 model and
engine with DeepSpeed's float32 master weights. TRL 1.16 scores with a fused head that on CPUs falls back to slow code;
1.14 has plain logits of the completion, so both are compared. Before the timing both sides compute loss and gradient norm of
one fixed batch.
"""

import argparse
import contextlib
import itertools

import numpy as np

from tests.benchmarks import workload
from tests.benchmarks.paired import in_turns, report
from tests.benchmarks.sides import agree, check, installed, ours, peer

TRL = ("1.16", "1.14")
GROUP, LR = 8, 1e-6
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}


def job(size, vocab, precision):
    """Our job of the benchmark."""
    count = size.samples // GROUP
    return {
        "job": "ppo",
        "model": {"path": workload.model(size.shape, vocab), "dtype": precision},
        "data": {"path": workload.prompts(vocab), "max_prompt_tokens": workload.PROMPT},
        "algorithm": {"type": "grpo", "group_size": GROUP, "importance": "off"},
        "rollout": {
            "prompts_per_step": count, "chunk_prompts": count, "max_new_tokens": size.longest,
            "engine": {"dtype": precision, "max_rows": size.samples},
        },
        "rewards": {"terms": [{"name": "even", "type": "function", "path": "tests/benchmarks/reward.py:reward"}]},
        "learner": {"lr": LR, "micro_batch_tokens": 4096},
        "num_steps": 1_000_000,
    }  # fmt: skip


def compare(size, vocab, kind, precision, rounds):
    """Rows of one case, one for each installed version of TRL."""
    spec = {
        "model": workload.model(size.shape, vocab), "prompts": workload.prompts(vocab), "kind": kind, "group": GROUP,
        "precision": precision, "samples": size.samples, "longest": size.longest, "micro": size.micro,
        "fixed": workload.fixed(vocab, 16, size.longest),
    }  # fmt: skip
    mine = check("grpo", spec)
    tokens = int(workload.lengths(kind, size.samples, size.longest).sum())
    with contextlib.ExitStack() as stack:
        mine_running = stack.enter_context(ours(job(size, vocab, precision), kind))
        peers = {trl: stack.enter_context(peer("grpo", trl, spec)) for trl in TRL if installed(trl)}
        for side in peers.values():
            agree(side.name, mine, side.ready["check"], TOLERANCE[precision])
        timings, answers = in_turns([mine_running, *peers.values()], rounds)
    for name, given in answers.items():
        assert all(round(a["tokens"]) == tokens for a in given), f"{name} did not generate {tokens} tokens a step"
    return [
        {"case": f"V={vocab}, {kind}, {precision}, TRL {trl}", "tokens": tokens, "samples": size.samples,
         "ours_check": mine, "theirs_check": side.ready["check"], "ours_stages_s": stages(answers["ours"]),
         **timings.against(side.name)}
        for trl, side in peers.items()
    ]  # fmt: skip


def stages(answers):
    """Median seconds of the stages of our step."""
    found = [{k: v for k, v in a["metrics"].items() if k.startswith("time/")} for a in answers]
    return {k: float(np.median([f[k] for f in found])) for k in found[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocab", type=int, nargs="+", default=[2048, 32000])
    parser.add_argument("--kind", nargs="+", default=["skewed", "equal"])
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--quick", action="store_true", help="a tiny model and short responses: does it run at all")
    args = parser.parse_args()
    size, rows = workload.QUICK if args.quick else workload.FULL, []
    for vocab, kind, precision in itertools.product(args.vocab, args.kind, args.precision):
        rows += compare(size, vocab, kind, precision, args.rounds)
        report("grpo against trl: seconds of a step", rows)


if __name__ == "__main__":
    main()
