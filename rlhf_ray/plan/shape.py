"""The sizes of a transformer, from the values of its Hugging Face config: parameters by formula, without building it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..config import BadInput

Values = Mapping[str, Any]
"""config.json of a model, or the values of `model.init`."""

OPTIONAL_SIZES = {"head_dim", "n_inner", "num_key_value_heads"}
"""Keys whose value may be null, which means that they follow from other keys."""

SIZES = OPTIONAL_SIZES | {
    "hidden_size", "intermediate_size", "max_position_embeddings", "n_embd", "n_head", "n_layer", "n_positions",
    "num_attention_heads", "num_hidden_layers", "type_vocab_size", "vocab_size",
}  # fmt: skip
"""Keys of config.json that the formulas read as sizes."""


@dataclass(frozen=True)
class Shape:
    """A decoder or encoder of equal layers. Counts of numbers, not bytes.

    ``linears``: (inputs, outputs, 1 with a bias or 0) of each matrix product of a layer but attention's own;
    ``vectors``: what a layer has besides, its norms above all; ``tables``: position tables, final norm and the like.
    """

    family: str
    num_layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    inner: int
    vocab: int
    tied: bool
    gated: bool
    linears: tuple[tuple[int, int, int], ...]
    vectors: int
    tables: int

    @property
    def body(self) -> int:
        """Parameters but for embedding and head: what every token is multiplied with."""
        layer = sum(i * o + o * bias for i, o, bias in self.linears) + self.vectors
        return self.num_layers * layer + self.tables

    @property
    def attention_width(self) -> int:
        """Numbers of a token's query in all layers together."""
        return self.num_layers * self.heads * self.head_size

    @property
    def head(self) -> int:
        """Parameters of the output head, which a tied one shares with the embedding."""
        return self.vocab * self.hidden

    @property
    def num_parameters(self) -> int:
        """All of a causal language model (of an encoder without its task head)."""
        return self.body + self.head * (1 if self.tied else 2)

    @property
    def scalar_parameters(self) -> int:
        """Those of a critic or reward model: one output in place of the head."""
        return self.body + self.head + self.hidden

    def adapter_parameters(self, rank: int) -> int:
        """Numbers of LoRA matrices of this rank on every linear layer: rank (inputs + outputs) each (Hu et al., 2021)."""
        return self.num_layers * sum(rank * (i + o) for i, o, _ in self.linears)


def shape_of(values: Values, source: str = "config.json") -> Shape | None:
    """The shape of a model with these values of config.json; None if its architecture has no formula in FAMILIES.

    Raises BadInput, which names the ``source`` of the values, if a size is no positive whole number.
    """
    make = FAMILIES.get(str(values.get("model_type")))
    if make is None:
        return None
    for key in SIZES & values.keys():
        size = values[key]
        if size is None and key in OPTIONAL_SIZES:
            continue
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise BadInput(f"{source}: {key} is {size!r}; give a whole number of at least 1")
    return make(values)


def _decoder(v: Values, qkv_bias: bool, out_bias: bool, mlp_bias: bool, qk_norm: bool = False) -> Shape:
    """Llama and its descendants: RMS norms, rotary positions, a gated MLP, grouped keys and values."""
    hidden, heads = v.get("hidden_size", 4096), v.get("num_attention_heads", 32)
    kv, size = v.get("num_key_value_heads") or heads, v.get("head_dim") or hidden // heads
    inner, vocab = v.get("intermediate_size", 11008), v.get("vocab_size", 32000)
    q, k, up = (hidden, heads * size, int(qkv_bias)), (hidden, kv * size, int(qkv_bias)), (hidden, inner, int(mlp_bias))
    linears = (q, k, k, (heads * size, hidden, int(out_bias)), up, up, (inner, hidden, int(mlp_bias)))
    return Shape(
        str(v["model_type"]), v.get("num_hidden_layers", 32), hidden, heads, kv, size, inner, vocab,
        bool(v.get("tie_word_embeddings", False)), True, linears, 2 * hidden + (2 * size if qk_norm else 0), hidden,
    )  # fmt: skip


def _llama(v: Values) -> Shape:
    bias = bool(v.get("attention_bias", False))
    return _decoder(v, bias, bias, bool(v.get("mlp_bias", False)))


def _mistral(v: Values) -> Shape:
    return _decoder({"intermediate_size": 14336, "num_key_value_heads": 8, **v}, False, False, False)


def _qwen2(v: Values) -> Shape:
    return _decoder(
        {"intermediate_size": 22016, "vocab_size": 151936, "num_key_value_heads": 32, **v}, True, False, False
    )


def _qwen3(v: Values) -> Shape:
    defaults = {"intermediate_size": 22016, "vocab_size": 151936, "num_key_value_heads": 32, "head_dim": 128}
    bias = bool(v.get("attention_bias", False))
    return _decoder({**defaults, **v}, bias, bias, False, qk_norm=True)


def _plain(v: Values, tied: bool, bias: bool, tables: int, fused_inner: int | None = None) -> Shape:
    """GPT-2, GPT-NeoX and BERT: norms with a bias, an MLP of two products, all heads with keys of their own."""
    hidden, heads = v["hidden_size"], v["num_attention_heads"]
    inner = fused_inner or v["intermediate_size"]
    square = (hidden, hidden, int(bias))
    linears = (square, square, square, square, (hidden, inner, 1), (inner, hidden, 1))
    return Shape(
        str(v["model_type"]), v["num_hidden_layers"], hidden, heads, heads, hidden // heads, inner, v["vocab_size"],
        tied, False, linears, 4 * hidden, tables,
    )  # fmt: skip


def _gpt2(v: Values) -> Shape:
    hidden = v.get("n_embd", 768)
    named = {
        "model_type": "gpt2", "hidden_size": hidden, "num_attention_heads": v.get("n_head", 12),
        "num_hidden_layers": v.get("n_layer", 12), "vocab_size": v.get("vocab_size", 50257),
        "intermediate_size": v.get("n_inner") or 4 * hidden,
    }  # fmt: skip
    positions = v.get("n_positions") or v.get("max_position_embeddings") or 1024
    return _plain(named, bool(v.get("tie_word_embeddings", True)), True, positions * hidden + 2 * hidden)


def _gpt_neox(v: Values) -> Shape:
    defaults = {
        "hidden_size": 6144, "num_attention_heads": 64, "num_hidden_layers": 44, "intermediate_size": 24576, "vocab_size": 50432,
    }  # fmt: skip
    filled = {**defaults, **v}
    return _plain(
        filled,
        bool(v.get("tie_word_embeddings", False)),
        bool(v.get("attention_bias", True)),
        2 * filled["hidden_size"],
    )


def _bert(v: Values) -> Shape:
    defaults = {
        "hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "intermediate_size": 3072, "vocab_size": 30522,
    }  # fmt: skip
    filled = {**defaults, **v}
    hidden = filled["hidden_size"]
    rows = filled.get("max_position_embeddings", 512) + filled.get("type_vocab_size", 2)
    return _plain(filled, True, True, rows * hidden + 2 * hidden)


FAMILIES: dict[str, Callable[[Values], Shape]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "bert": _bert,
}
