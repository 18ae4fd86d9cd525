"""The choice of a decoder: a KV cache if it is right, else recomputation with a reason; errors are never swallowed."""

import numpy as np
import pytest
import torch

from rlhf_ray.rollout.decoders import RecomputingDecoder, choose_decoder
from rlhf_ray.rollout.kv_cache import CachedDecoder
from tests.unit.rollout.tiny import CPU, causal_model, completions, engine_of, nine_requests

GPT = {"n_layer": 2, "n_head": 2}
CACHED = {
    "llama": {},
    "mistral": {"sliding_window": 4},
    "gpt_neox": {},
    "qwen2": {},
    "gemma3_text": {"head_dim": 16, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "falcon": {},
    "deepseek_v2": {
        "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
        "num_key_value_heads": 2, "n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16,
    },
}  # fmt: skip
RECOMPUTED = {
    "gemma2": ({"head_dim": 16, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0}, "uses softcap"),
    "gpt_oss": ({"head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1}, "uses s_aux"),
    "bloom": (GPT, "uses ALiBi"),
    "falcon": ({"alibi": True}, "uses ALiBi"),
    "mamba": ({"state_size": 4}, "layers of kind linear_attention"),
    "rwkv": ({"attention_hidden_size": 32}, "a recurrent state"),
    "llama4_text": (
        {"head_dim": 16, "intermediate_size_mlp": 64, "num_local_experts": 2}, "layers of kind chunked_attention"
    ),
    "openai-gpt": ({"n_embd": 32, **GPT}, "caches keys and values of 0 of 2 layers"),
    "doge": ({}, "a mask for each head"),
    "cohere": ({}, "differ from the plain model's by"),  # it scales logits after the head
    "bert": ({}, "differ from the plain model's by"),  # it sees the tokens that follow
}  # fmt: skip


def plain_log_probs(model, prompt, response, temperature):
    """Log-probs of the response by one forward pass over the whole sequence."""
    ids = torch.tensor(np.concatenate([prompt, response])).long()
    with torch.no_grad():
        log_probs = (model(input_ids=ids[None], use_cache=False).logits[0].float() / temperature).log_softmax(-1)
    return [float(log_probs[i - 1, ids[i]]) for i in range(len(prompt), len(ids))]


@pytest.mark.parametrize("kind", CACHED)
def test_with_a_cache_log_probs_are_those_of_a_fresh_forward_pass(kind):
    engine = engine_of(causal_model(kind, **CACHED[kind]))
    assert isinstance(engine.decoder, CachedDecoder)
    assert engine.decoding.method == "KV cache"
    assert not engine.decoding.remark
    plain, requests = causal_model(kind, **CACHED[kind]), nine_requests()
    for id, completion in completions(engine, requests).items():
        expected = plain_log_probs(plain, requests[id].prompt, completion.tokens, 0.8)
        np.testing.assert_allclose(completion.log_probs, expected, atol=1e-4)


@pytest.mark.parametrize("kind", RECOMPUTED)
def test_a_model_that_a_cache_does_not_fit_is_recomputed_and_the_reason_is_given(kind):
    config, reason = RECOMPUTED[kind]
    engine = engine_of(causal_model(kind, **config))
    assert isinstance(engine.decoder, RecomputingDecoder)
    name = type(engine.model).__name__
    assert engine.decoding.remark.startswith(f"{name}: decoding without a KV cache, which is slow: ")
    assert reason in engine.decoding.remark


def test_recomputed_log_probs_are_those_of_a_fresh_forward_pass():
    config, _ = RECOMPUTED["gemma2"]
    plain, requests = causal_model("gemma2", **config), nine_requests()
    for id, completion in completions(engine_of(causal_model("gemma2", **config)), requests).items():
        expected = plain_log_probs(plain, requests[id].prompt, completion.tokens, 0.8)
        np.testing.assert_allclose(completion.log_probs, expected, atol=1e-4)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, IndexError, TypeError, ValueError])
def test_an_error_in_the_comparison_is_not_taken_for_an_unsuited_model(error):
    def fail(module, args):
        raise error("planted")

    model = causal_model()
    model.base_model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(error, match="planted"):
        choose_decoder(model, 4, CPU)


class EagerGraphs:
    """Calls the function at once where Graphs would replay a capture of it."""

    def __init__(self, function):
        self.function, self.shapes = function, set()

    def clear(self):
        pass

    def __call__(self, size, *tensors):
        self.shapes.add((size, len(tensors[0])))
        return self.function(size, *tensors)


@pytest.mark.parametrize("config", [{}, {"kind": "mistral", "sliding_window": 4}], ids=["full", "window"])
def test_steps_padded_to_the_few_shapes_of_graphs_sample_the_same(config):
    """Rows and widths are padded to powers of two, also where few rows are alive and the cache grows."""
    expected = completions(engine_of(causal_model(**config), max_new_tokens=80), nine_requests())
    engine = engine_of(causal_model(**config), max_new_tokens=80)
    graphs = engine.decoder.graphs = EagerGraphs(engine.decoder._decode)
    padded = completions(engine, nine_requests())
    assert graphs.shapes <= {(width, rows) for width in (64, 128) for rows in (1, 2, 4)}
    for id, completion in expected.items():
        np.testing.assert_array_equal(padded[id].tokens, completion.tokens)
        np.testing.assert_allclose(padded[id].log_probs, completion.log_probs, atol=1e-4)
