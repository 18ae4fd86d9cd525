"""Bytes by formula against what torch allocates, a GPU's measured peak, and the ZeRO paper."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_ray.models import attention
from rlhf_ray.models.load import wrap_model
from rlhf_ray.plan import memory
from rlhf_ray.plan.hardware import GIB
from rlhf_ray.plan.shape import shape_of
from tests.helpers import TINY
from tests.unit.plan.published import GIANTS, a_benchmarks_shape


def peak_bytes(model, tokens, length, scored):
    """What torch's profiler counts at the peak of a forward and backward pass over sequences of ``length``."""
    from torch.profiler import ProfilerActivity, profile

    ids = torch.randint(0, model.core.config.vocab_size, (tokens,))
    lengths = torch.full((tokens // length,), length)
    at = torch.tensor([i for i in range(tokens) if i % length >= length - scored])
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        (-model(ids, lengths, at)[0].sum()).backward()
    now = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("dtype", "short"), [("float32", False), ("bfloat16", False), ("bfloat16", True)])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
def test_activations_by_formula_are_what_torch_allocates(kind, dtype, checkpointing, short, monkeypatch):
    monkeypatch.setattr(attention, "FLOAT32_LENGTH", attention.FLOAT32_LENGTH if short else 0)  # 0: as on a GPU
    values = {
        "llama": {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2,
                  "vocab_size": 300, "tie_word_embeddings": True},
        "gpt2": {"n_embd": 128, "n_layer": 5, "n_head": 4, "n_inner": 320, "vocab_size": 300, "n_positions": 64},
        "gpt_neox": {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 5, "num_attention_heads": 4, "vocab_size": 300},
    }[kind]  # fmt: skip
    config = AutoConfig.for_model(kind, **values, bos_token_id=None, eos_token_id=None)
    model = wrap_model(
        "policy", AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)), attention="packed"
    )
    if checkpointing:
        model.core.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    peak_bytes(model, 128, 64, 16)  # first calls allocate what later ones do not
    found = memory.activations(shape_of({**values, "model_type": kind}), 512, 8 * 63, dtype, checkpointing, wide=short)
    assert sum(found.values()) == pytest.approx(peak_bytes(model, 512, 64, 63), rel=0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_logits_of_a_large_vocabulary_are_what_torch_allocates(dtype):
    values = {**TINY, "vocab_size": 40_000}
    config = AutoConfig.for_model(**{**values, "bos_token_id": None, "eos_token_id": None})
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model = wrap_model("policy", model, attention="packed")
    for tokens in (256, 1024):  # one chunk, and three
        found = memory.activations(shape_of(values), tokens, tokens * 63 / 64, dtype, False)
        assert sum(found.values()) == pytest.approx(peak_bytes(model, tokens, 64, 63), rel=0.15)
        assert found["logits"] > found["activations"]


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.88)])
def test_model_states_are_those_of_the_zero_paper(stage, gigabytes):
    """Rajbhandari et al. (2020), figure 1: 7.5 billion parameters on 64 GPUs, mixed precision and Adam (K = 12)."""
    n = 7.5e9
    found = memory.states(n, n, "bfloat16", stage, 64, cpu=False)
    gradients = 2 * n / (64 if stage >= 2 else 1)
    assert (sum(found.resident.values()) + gradients) / 1e9 == pytest.approx(gigabytes, rel=0.01)
    assert found.working["gradients"] >= gradients


def test_key_value_bytes_by_hand():
    """Llama-2-70B: 2 x 80 layers x 8 heads x 128 x 2 bytes = 320 KiB a token."""
    assert memory.kv_bytes(shape_of(GIANTS["llama-2-70b"]), 2) == 320 * 1024
    small = shape_of({**TINY, "vocab_size": 100})
    parts = memory.embedded_engine(small, 8, 100, "float32", cpu=True)
    assert parts["KV cache"] == 8 * 128 * 2 * 2 * 16 * 4  # rows, room, layers, keys and values, width, bytes
    engine = memory.vllm_engine(shape_of(GIANTS["llama-2-70b"]), 4, "bfloat16", 30 * GIB, None)
    assert engine["KV cache"] < 0  # a quarter of 138 GB does not fit into 30 GiB


def test_memory_that_was_measured_on_a_gpu():
    """A learner of 0.5B parameters with micro-batches of 22,867 tokens held 48.57 GiB of an H200."""
    model = a_benchmarks_shape("0.5B")
    num = float(model.num_parameters)
    states = memory.states(num, num, "bfloat16", 1, 1, cpu=False)
    acts = memory.activations(model, 22867.0, 20800.0, "bfloat16", False, on_gpu=True)
    need = memory.Need("learner", states.resident, {**states.working, **acts}, states.step)
    assert need.resident_bytes(cpu=False) + need.peak_extra_bytes(cpu=False) == pytest.approx(48.57 * GIB, rel=0.25)
