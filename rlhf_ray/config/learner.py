"""Options of the learner ranks, their optimizer, and the critic."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .section import Section

Decay = Annotated[float, Field(ge=0, lt=1)]


class LearnerConfig(Section):
    """The learner ranks and their optimizer."""

    num_workers: int = Field(1, ge=1, description="Learner ranks; each learns from a share of every batch.")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        1,
        description="What DeepSpeed shards over the ranks: 0 nothing, 1 optimizer state, 2 gradients too, 3 "
        "parameters too.",
    )
    micro_batch_tokens: int = Field(
        8192,
        ge=1,
        description="Tokens of one forward and backward pass; lower it if memory runs out, raise it if devices idle.",
    )
    lr: float = Field(1e-6, gt=0, description="Peak learning rate.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Learning rate after the warm-up; linear and cosine fall to 0 at num_steps."
    )
    warmup_steps: int = Field(0, ge=0, description="Steps over which the learning rate rises linearly from 0.")
    optimizer: Literal["adamw", "adamw_8bit", "muon", "sgd"] = Field(
        "adamw",
        description="AdamW; with moments of 8 bits (bitsandbytes, GPUs only); Muon for hidden matrices and AdamW for "
        "the rest (ZeRO 1 to 3, no adapters); or plain SGD (for comparisons).",
    )
    betas: tuple[Decay, Decay] = Field(
        (0.9, 0.95),
        description="Decays of AdamW's two moments. Muon has them only for embeddings, head and vectors; sgd has none.",
    )
    weight_decay: float = Field(0.0, ge=0, description="Weight decay; decoupled, except for sgd.")
    node_copies: bool = Field(
        False,
        description="At ZeRO-3 on several nodes, each node keeps all weights, so that the backward pass gathers within "
        "a node (ZeRO++ hpZ); takes the weights' bytes over the node's ranks from each GPU.",
    )
    max_grad_norm: float = Field(
        1.0, gt=0, description="Gradients with a larger norm are scaled down to it; not for muon."
    )
    offload: Literal["none", "optimizer", "all"] = Field(
        "none",
        description="What moves to host memory while no stage needs it, if the learner shares its GPUs with engines: "
        "nothing, the optimizer's states (12 bytes a parameter), or also the weights and the reference. The engines "
        "can then have a larger KV cache (rollout.engine.memory_fraction).",
    )


class ReferenceConfig(Section):
    """The model that the KL penalty refers to: the policy at the start of the job."""

    offload: bool = Field(
        False,
        description="Keep its weights in host memory, except while its log-probs are computed; costs a copy each step.",
    )


class CriticConfig(Section):
    """The critic of PPO."""

    path: str | None = Field(
        None,
        description="Model that the critic starts from, a directory or id; none: the reward model if it has "
        "the policy's tokenizer, else the policy.",
    )
    lr: float = Field(5e-6, gt=0, description="Learning rate of the critic.")
    warmup_steps: int = Field(
        0,
        ge=0,
        description="First steps in which only the critic learns; raise it if the values are poor at the start.",
    )
