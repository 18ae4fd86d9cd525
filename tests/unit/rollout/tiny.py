"""Tiny random causal models, and an engine on each, for the tests of this folder."""

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_ray.rollout.engine import Request, Sampling
from rlhf_ray.rollout.transformers_engine import TransformersEngine

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 50,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "initializer_range": 0.5,
}
EOS = (2, 7)
CPU = torch.device("cpu")


def causal_model(kind="llama", seed=0, **config):
    """A model whose weights are large enough that its distributions are far from uniform."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SHAPE, **config})).eval()


def engine_of(model, max_rows=4, max_new_tokens=12, temperature=0.8):
    """An engine on the CPU that samples from the model."""
    return TransformersEngine(model, Sampling(max_new_tokens, temperature, EOS), max_rows, CPU)


def nine_requests(**fields):
    """Three prompts of different length with three samples each, side by side."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 50, n) for n in (3, 8, 5)]
    return [Request(id=i, prompt=prompts[i // 3], seed=100 + i, group=i // 3, **fields) for i in range(9)]


def completions(engine, requests):
    """id -> Completion, once all requests have finished."""
    engine.add(requests)
    by_id = {}
    while engine.busy:
        by_id |= {c.id: c for c in engine.step()}
    return by_id
