"""What a model is made of."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from .section import Section


class LoraConfig(Section):
    """Low-rank adapters (Hu et al., 2021) through peft."""

    rank: int = Field(16, ge=1, description="Rank of the adapters.")
    alpha: int = Field(32, gt=0, description="Scale: the update is multiplied by alpha / rank.")
    targets: list[str] | Literal["all-linear"] = Field(
        "all-linear", description="Names of the linear layers that get one."
    )


class ModelConfig(Section):
    """A model from a checkpoint, or a random one from transformers config values."""

    path: str | None = Field(
        None, description="Hugging Face directory or id; 'stage:NAME' is the model of an earlier pipeline stage."
    )
    init: dict[str, Any] | None = Field(
        None,
        description="transformers config values with model_type, for a random model (vocab_size from the tokenizer).",
    )
    tokenizer: str | None = Field(None, description="Tokenizer directory or id, or 'toy'; by default the model's own.")
    revision: str | None = Field(None, description="Commit of a Hugging Face id.")
    trust_remote_code: bool = Field(False, description="Whether code that ships with the model may run.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Numbers the learner computes with.")
    attention: Literal["auto", "packed", "padded"] = Field(
        "auto", description="Padding-free forward; auto falls back to padded where the two disagree on a check at load."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass to save memory."
    )
    compile: bool = Field(
        False,
        description="Compile normalisation layers and MLPs of what is trained (torch.compile): starts later, saves memory traffic.",
    )
    lora: LoraConfig | None = Field(None, description="Train adapters instead of the weights.")

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        if (self.path is None) == (self.init is None):
            raise ValueError("give exactly one of 'path' (a checkpoint) and 'init' (a random model)")
        if self.init is not None and ("model_type" not in self.init or self.tokenizer is None):
            raise ValueError("'init' needs a model_type in it and a 'tokenizer' beside it")
        return self
