"""Generation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from .section import Section


class TransformersEngine(Section):
    """The embedded engine: runs anywhere torch runs."""

    type: Literal["transformers"] = "transformers"
    max_rows: int = Field(64, ge=1, description="Sequences decoded together.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Numbers the engine computes with.")


class RolloutConfig(Section):
    """How completions are sampled."""

    num_workers: int = Field(1, ge=1, description="Rollout workers.")
    prompts_per_step: int = Field(16, ge=1, description="Prompts of one step; each gets algorithm.group_size samples.")
    chunk_prompts: int = Field(
        16, ge=1, description="Prompts handed out together; who computes a chunk changes nothing."
    )
    max_new_tokens: int = Field(128, ge=1, description="Longest response, in tokens.")
    temperature: float = Field(1.0, gt=0, description="Sampling temperature; log-probs and entropy use it too.")
    ahead: int = Field(0, ge=0, description="Step s trains on rollouts of version max(0, s - ahead); 0 is synchronous.")
    engine: TransformersEngine = Field(default_factory=TransformersEngine, description="What generates.")

    @model_validator(mode="before")
    @classmethod
    def _whole_distribution(cls, data: Any) -> Any:
        for key in ("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            if isinstance(data, dict) and key in data:
                raise ValueError(f"'{key}' is refused: training rollouts sample from the distribution that is trained")
        return data
