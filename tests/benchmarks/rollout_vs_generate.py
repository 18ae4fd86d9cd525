"""The embedded engine against transformers' generate: the same model, prompts, lengths and precision, greedy on both sides.

Lengths are forced: an end token that never comes, and a limit for each request. With skewed lengths `generate` pads to the
longest of its batch; continuous batching refills the rows. Both sides must produce the same tokens.
"""

import argparse

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_ray.rollout.engine import Request, Sampling
from rlhf_ray.rollout.transformers_engine import TransformersEngine
from tests.benchmarks.paired import compare, report

SHAPES = {
    "1M": {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4},
    "6.6M": {"hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6},
}


def lengths(kind, count, longest):
    """Response lengths: all the longest, or one in eight the longest and the others drawn up to a quarter of it."""
    if kind == "equal":
        return np.full(count, longest)
    draw = np.random.default_rng(0)
    found = draw.integers(longest // 16, longest // 4, count)
    found[:: max(1, count // max(1, count // 8))] = longest
    return found


def sides(model, prompts, sizes, batch):
    """Two functions that generate ``sizes`` tokens for ``prompts``, at most ``batch`` rows at a time."""
    longest = int(sizes.max())

    def ours():
        engine.add([Request(i, p, i, i, True, int(n)) for i, (p, n) in enumerate(zip(prompts, sizes, strict=True))])
        found = {}
        while engine.busy:
            found |= {c.id: c.tokens for c in engine.step()}
        return [found[i] for i in range(len(prompts))]

    @torch.no_grad()
    def theirs():
        found = []
        for start in range(0, len(prompts), batch):
            ids, need = torch.tensor(np.stack(prompts[start : start + batch])), sizes[start : start + batch]
            out = plain.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=int(need.max()),
                eos_token_id=-1, pad_token_id=0,
            )  # fmt: skip
            found += [row[ids.shape[1] :][:n].numpy() for row, n in zip(out, need, strict=True)]
        return found

    plain = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype).eval()
    plain.load_state_dict(model.state_dict())
    engine = TransformersEngine(model, Sampling(longest, 1.0, (-1,)), batch, torch.device("cpu"))
    return ours, theirs


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=128, help="prompts")
    parser.add_argument("--batch", type=int, default=32, help="rows decoded together, on both sides")
    parser.add_argument("--longest", type=int, default=128, help="tokens")
    args = parser.parse_args()
    rows = []
    for name, shape in SHAPES.items():
        for kind in ("equal", "skewed"):
            torch.manual_seed(0)
            config = AutoConfig.for_model(
                "llama",
                vocab_size=2048,
                num_key_value_heads=shape["num_attention_heads"],
                max_position_embeddings=1024,
                **shape,
            )
            model = AutoModelForCausalLM.from_config(config).eval()
            draw = np.random.default_rng(1)
            prompts = [draw.integers(3, 2048, 16) for _ in range(args.count)]
            sizes = lengths(kind, args.count, args.longest)
            ours, theirs = sides(model, prompts, sizes, args.batch)
            same = np.mean([np.array_equal(a, b) for a, b in zip(ours(), theirs(), strict=True)])
            assert same > 0.95, f"only {same:.0%} of the responses are the same"
            found = compare(ours, theirs, args.rounds)
            rows.append({"case": f"{name}, {kind} lengths, float32", "same": same, "tokens": int(sizes.sum()), **found})
    report("rollout: embedded engine against transformers generate", rows)


if __name__ == "__main__":
    main()
