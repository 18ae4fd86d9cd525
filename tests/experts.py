"""Tiny mixtures of experts, with the names of an expert's matrices in their checkpoints."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SHAPE = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "pad_token_id": 0,
    "num_experts_per_tok": 2, "initializer_range": 0.2,
}  # fmt: skip
EXPERTS = {
    "qwen3_moe": {**SHAPE, "num_experts": 4, "moe_intermediate_size": 16},
    "mixtral": {**SHAPE, "num_local_experts": 4},
}
UP_PROJECTION = {
    "qwen3_moe": "model.layers.1.mlp.experts.3.up_proj.weight",
    "mixtral": "model.layers.1.block_sparse_moe.experts.3.w3.weight",
}


def save_random_model(architecture, path):
    """Writes a random model of EXPERTS; returns the path."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **EXPERTS[architecture])
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return str(path)
