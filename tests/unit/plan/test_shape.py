"""Parameters by formula against transformers' own models, peft's adapters, and published sizes."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_ray.config import BadInput
from rlhf_ray.plan.shape import shape_of
from tests.unit.plan.published import GIANTS

SMALL = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 101}
WIDE = {**SMALL, "intermediate_size": 96, "num_key_value_heads": 2}
KINDS = [
    ("llama", WIDE),
    ("llama", {**WIDE, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 8}),
    ("mistral", WIDE),
    ("qwen2", WIDE),
    ("qwen2", {**WIDE, "tie_word_embeddings": True}),
    ("qwen3", {**WIDE, "head_dim": 32}),
    ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 101, "n_positions": 48}),
    ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 80, "vocab_size": 101, "tie_word_embeddings": False}),
    ("gpt_neox", {**SMALL, "intermediate_size": 96}),
    ("gpt_neox", {**SMALL, "intermediate_size": 96, "attention_bias": False}),
]


def built(auto, config):
    with torch.device("meta"):
        return auto.from_config(config)


def size(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("kind", "values"), KINDS)
def test_parameters_by_formula_are_those_of_the_model(kind, values):
    config = AutoConfig.for_model(kind, **values)
    found = shape_of({**values, "model_type": kind})
    assert found.num_parameters == size(built(AutoModelForCausalLM, config))
    assert shape_of(config.to_dict()) == found  # what a config.json says in full
    scalar = built(AutoModelForSequenceClassification, AutoConfig.for_model(kind, **values, num_labels=1))
    head = sum(p.numel() for n, p in scalar.named_parameters() if n.startswith("score."))
    assert found.scalar_parameters == size(scalar) - head + 64


def test_an_encoder_and_an_unknown_architecture():
    values = {**SMALL, "intermediate_size": 96, "max_position_embeddings": 32}
    model = AutoModel.from_config(AutoConfig.for_model("bert", **values), add_pooling_layer=False)
    assert shape_of({**values, "model_type": "bert"}).num_parameters == size(model)
    assert shape_of({"model_type": "mamba"}) is None


def test_published_sizes():
    """Of their model cards: 68.98, 7.62 and 72.7 billion."""
    sizes = {name: shape_of(values).num_parameters for name, values in GIANTS.items()}
    assert sizes == {"llama-2-70b": 68_976_648_192, "qwen2-7b": 7_615_616_512, "qwen2-72b": 72_706_203_648}


def test_adapters_are_those_of_peft():
    from peft import LoraConfig, get_peft_model

    values = {**WIDE, "model_type": "llama"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **WIDE))
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    assert shape_of(values).adapter_parameters(4) == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("key", "size"),
    [("num_attention_heads", 0), ("hidden_size", "abc"), ("hidden_size", None), ("num_hidden_layers", -1),
     ("vocab_size", True), ("intermediate_size", 96.5), ("num_key_value_heads", 0)],
)  # fmt: skip
def test_sizes_that_no_model_can_have_are_refused(key, size):
    values = {**WIDE, "model_type": "llama", key: size}
    with pytest.raises(BadInput, match=f"^model.init: {key} is {size!r}; give a whole number of at least 1$"):
        shape_of(values, "model.init")


def test_sizes_that_follow_from_others_may_be_null():
    values = {**SMALL, "intermediate_size": 96, "model_type": "llama"}
    assert shape_of({**values, "num_key_value_heads": None, "head_dim": None}) == shape_of(values)
