"""Models that others published, and jobs that train them."""

from rlhf_ray.plan.shape import shape_of
from tests.benchmarks import rollout_vs_generate

GIANTS = {
    "llama-2-70b": {
        "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": 32000,
    },
    "qwen2-7b": {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064,
    },
    "qwen2-72b": {
        "model_type": "qwen2", "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": 152064,
    },
}  # fmt: skip


def a_benchmarks_shape(name):
    values = rollout_vs_generate.SHAPES[name]
    more = {"vocab_size": 32000, "num_key_value_heads": values["num_attention_heads"], "tie_word_embeddings": True}
    return shape_of({"model_type": "llama", **values, **more})
