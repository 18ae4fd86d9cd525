"""Options of a model: where it comes from, its dtype and its adapters."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from .dtype import Dtype
from .section import Section


class LoraConfig(Section):
    """Low-rank adapters (Hu et al., 2021), by peft."""

    rank: int = Field(16, ge=1, description="Rank of the adapters; more learns more and needs more memory.")
    alpha: int = Field(32, gt=0, description="Scale: the update is multiplied by alpha / rank.")
    targets: list[str] | Literal["all-linear"] = Field(
        "all-linear", description="Names of the linear layers that get an adapter."
    )


class ModelConfig(Section):
    """A model from a checkpoint, or a random one from transformers config values."""

    path: str | None = Field(
        None,
        description="Hugging Face directory or id; 'stage:NAME' is the model of an earlier stage of the pipeline.",
    )
    init: dict[str, Any] | None = Field(
        None,
        description="Values of transformers' config, with model_type, for a random model; vocab_size is the "
        "tokenizer's.",
    )
    tokenizer: str | None = Field(None, description="Tokenizer directory or id, or 'toy'; none: the model's.")
    revision: str | None = Field(None, description="Commit, tag or branch of a Hugging Face id; none: the newest.")
    trust_remote_code: bool = Field(
        False, description="Run Python code from the model's directory; only for sources you trust."
    )
    dtype: Dtype = Field(
        "auto",
        description="Dtype of the learner's forward and backward passes; auto is bfloat16 on GPUs, float32 on a CPU.",
    )
    attention: Literal["auto", "packed", "padded"] = Field(
        "auto",
        description="packed has no padding and is faster; auto pads if a check at load shows that the two differ.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third more time."
    )
    compile: bool = Field(
        False,
        description="Compile normalisation layers and MLPs of trained models (torch.compile): steps are faster, "
        "the start takes longer.",
    )
    lora: LoraConfig | None = Field(
        None, description="Train low-rank adapters instead of all weights; none: all weights."
    )

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        if (self.path is None) == (self.init is None):
            raise ValueError("set exactly one of 'path' (a checkpoint) and 'init' (a random model)")
        if self.init is not None and ("model_type" not in self.init or self.tokenizer is None):
            raise ValueError("'init' needs a model_type in it, and a 'tokenizer' next to it")
        return self
