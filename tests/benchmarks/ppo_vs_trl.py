"""A PPO step against TRL 1.12, the last with a PPOTrainer: generate, reward model, reference, critic, one update of each.

Same random 6.6M-parameter Llama as policy and reference, another as reward model and as the critic's trunk (its head at
zero), prompts of 16 tokens, 64 samples with forced response lengths up to 128, KL 0.05 in the reward, GAE 0.95, one epoch of
one mini-batch, AdamW. bfloat16: TRL's models are loaded in it (its bf16 switch does nothing in this trainer), ours too, with
DeepSpeed's float32 master weights. Both sides are compared on the responses of TRL's first step: mean score, the critic's
loss, both gradient norms. (With responses of unequal length TRL pays the reward one token later; the check has equal ones.)
"""

import itertools

from tests.benchmarks import workload
from tests.benchmarks.duel import Rival, arguments, duel
from tests.benchmarks.paired import report
from tests.benchmarks.sides import check

LR = 1e-6
TOLERANCE = {"float32": 5e-3, "bfloat16": 0.2}


def job(size, vocab, precision):
    """Our job of the benchmark."""
    reward = workload.model(size.shape, vocab, "reward")
    return {
        "job": "ppo",
        "model": {"path": workload.model(size.shape, vocab), "dtype": precision},
        "data": {"path": workload.prompts(vocab), "max_prompt_tokens": workload.PROMPT},
        "algorithm": {
            "type": "ppo", "epochs": 1, "num_mini_batches": 1, "dual_clip": None, "importance": "off",
            "kl": {"coef": 0.05},
        },
        "rollout": {
            "prompts_per_step": size.samples, "chunk_prompts": size.samples, "max_new_tokens": size.longest,
            "engine": {"dtype": precision, "max_rows": size.samples},
        },
        "rewards": {"terms": [{"name": "model", "type": "model", "path": reward, "standardise": False}]},
        "learner": {"lr": LR, "micro_batch_tokens": 4096, "max_grad_norm": 1e9},
        "critic": {"path": reward, "lr": LR},
        "num_steps": 1_000_000,
    }  # fmt: skip


def compare(size, vocab, kind, precision, rounds):
    """The row of one case."""
    spec = {
        "model": workload.model(size.shape, vocab), "reward": workload.model(size.shape, vocab, "reward"), "kind": kind,
        "prompts": workload.prompts(vocab), "precision": precision, "samples": size.samples, "longest": size.longest,
        "micro": size.micro, "epochs": 1,
    }  # fmt: skip

    def computed(_, theirs):
        return check("ppo", spec | {"whole": theirs["whole"]})

    case = f"V={vocab}, {kind}, {precision}"
    rivals = [Rival("TRL 1.12", "ppo", "1.12", spec)]
    return duel(case, job(size, vocab, precision), rivals, computed, TOLERANCE[precision], rounds, kind)


def main():
    args, size = arguments(__doc__)
    rows = []
    for vocab, kind, precision in itertools.product(args.vocab, args.kind, args.precision):
        rows += compare(size, vocab, kind, precision, args.rounds)
    report("ppo against trl: seconds of a step", rows)


if __name__ == "__main__":
    main()
