"""The embedded engine against transformers' generate: the same model, prompts, lengths and precision, greedy on both sides.

Lengths are forced: an end token that never comes, and a limit for each request. With skewed lengths `generate` pads to the
longest of its batch; continuous batching refills the rows. Both sides must produce the same tokens.
"""

import argparse
import itertools

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_ray.models.load import DTYPES
from rlhf_ray.rollout.engine import Request, Sampling
from rlhf_ray.rollout.transformers_engine import TransformersEngine
from tests.benchmarks.paired import compare, precisions, report

SHAPES = {
    "1M": {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4},
    "6.6M": {"hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6},
    "0.5B": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 28, "num_attention_heads": 16},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8192, "num_hidden_layers": 30, "num_attention_heads": 12},
}
SAME = {"float32": (None, 0.95), "bfloat16": (4, 0.2)}
"""How many first tokens of the greedy responses are compared (None: all), and the share of responses that must be equal: in
bfloat16 one rounding changes all that follows."""


def lengths(kind, count, longest):
    """Response lengths: all the longest, or one in eight the longest and the others drawn up to a quarter of it."""
    if kind == "equal":
        return np.full(count, longest)
    draw = np.random.default_rng(0)
    found = draw.integers(longest // 16, longest // 4, count)
    found[:: max(1, count // max(1, count // 8))] = longest
    return found


def machine(parser, shapes):
    """The command line, with options that say where a benchmark of one process runs, and with what."""
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=shapes)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="default: float32, and bfloat16 where it is faster")
    args = parser.parse_args()
    args.dtype = args.dtype or precisions(args.device)
    return args


def sides(model, prompts, sizes, batch):
    """Two functions that generate ``sizes`` tokens for ``prompts``, at most ``batch`` rows at a time."""
    longest = int(sizes.max())

    def ours():
        pairs = enumerate(zip(prompts, sizes, strict=True))
        engine.add(
            [Request(id=i, prompt=p, seed=i, group=i, greedy=True, max_new_tokens=int(n)) for i, (p, n) in pairs]
        )
        found = {}
        while engine.busy:
            found |= {c.id: c.tokens for c in engine.step()}
        return [found[i] for i in range(len(prompts))]

    @torch.no_grad()
    def theirs():
        found = []
        for start in range(0, len(prompts), batch):
            ids, need = (
                torch.tensor(np.stack(prompts[start : start + batch]), device=device),
                sizes[start : start + batch],
            )
            out = plain.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=int(need.max()),
                eos_token_id=-1, pad_token_id=0,
            )  # fmt: skip
            found += [row[ids.shape[1] :][:n].cpu().numpy() for row, n in zip(out, need, strict=True)]
        return found

    device = model.device
    plain = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype).to(device).eval()
    plain.load_state_dict(model.state_dict())
    engine = TransformersEngine(model, Sampling(longest, 1.0, (-1,)), batch, device)
    return ours, theirs


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=128, help="prompts")
    parser.add_argument("--batch", type=int, default=64, help="rows decoded together, on both sides")
    parser.add_argument("--longest", type=int, default=128, help="tokens")
    args = machine(parser, ["1M", "6.6M"])
    rows = []
    for name, dtype, kind in itertools.product(args.shape, args.dtype, ("equal", "skewed")):
        torch.manual_seed(0)
        shape = SHAPES[name]
        config = AutoConfig.for_model(
            "llama", vocab_size=2048, num_key_value_heads=shape["num_attention_heads"],
            max_position_embeddings=1024, **shape,
        )  # fmt: skip
        with torch.device(args.device):
            model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype]).eval()
        draw = np.random.default_rng(1)
        prompts = [draw.integers(3, 2048, 16) for _ in range(args.count)]
        sizes = lengths(kind, args.count, args.longest)
        ours, theirs = sides(model, prompts, sizes, args.batch)
        first, least = SAME[dtype]
        same = np.mean([np.array_equal(a[:first], b[:first]) for a, b in zip(ours(), theirs(), strict=True)])
        assert same > least, f"only {same:.0%} of the responses are the same"
        case = f"{name}, {kind} lengths, {dtype}"
        found = compare(ours, theirs, args.rounds)
        rows.append({"case": case, "same": same, "tokens": int(sizes.sum()), **found})
    report("rollout: embedded engine against transformers generate", rows)


if __name__ == "__main__":
    main()
