"""Optimisation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .section import Section

Decay = Annotated[float, Field(ge=0, lt=1)]


class LearnerConfig(Section):
    """The learner gang and its optimizer."""

    num_workers: int = Field(1, ge=1, description="Learner ranks; each holds a share of every batch.")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        1, description="What DeepSpeed shards: 1 optimizer, 2 gradients too, 3 parameters too."
    )
    micro_batch_tokens: int = Field(8192, ge=1, description="Tokens of one forward and backward pass.")
    lr: float = Field(1e-6, gt=0, description="Peak learning rate.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Learning rate after the warm-up."
    )
    warmup_steps: int = Field(0, ge=0, description="Steps over which the learning rate rises linearly.")
    optimizer: Literal["adamw", "adamw_8bit", "muon", "sgd"] = Field(
        "adamw",
        description="AdamW; with moments of 8 bits (bitsandbytes, GPUs only); Muon for hidden matrices and AdamW for "
        "the rest (ZeRO 1 to 3, no adapters); or plain SGD (for comparisons).",
    )
    betas: tuple[Decay, Decay] = Field((0.9, 0.95), description="AdamW's moment decays; sgd has none.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay: decoupled, but for sgd.")
    node_copies: bool = Field(
        False,
        description="At ZeRO-3 on several nodes, each node keeps all weights, so that the backward pass gathers within "
        "a node (ZeRO++ hpZ); takes the weights' bytes over the node's ranks from each GPU.",
    )
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this norm; not for muon.")
    offload: Literal["none", "optimizer", "all"] = Field(
        "none",
        description="What sleeps in host memory while no stage needs it, if the learner shares its GPUs with engines: "
        "nothing, the optimizer's states (12 bytes a parameter), or the weights and the reference too. The engines can then "
        "have a larger KV cache (rollout.engine.memory_fraction).",
    )


class ReferenceConfig(Section):
    """The model that the KL penalty refers to: the policy as the job found it."""

    offload: bool = Field(
        False,
        description="Its weights are in host memory but while its log-probs are computed: one copy to the device a step.",
    )


class CriticConfig(Section):
    """The critic of PPO."""

    path: str | None = Field(
        None,
        description="Its trunk, a directory or id; by default the reward model if that shares the policy's tokenizer, "
        "else the policy.",
    )
    lr: float = Field(5e-6, gt=0, description="Learning rate.")
    warmup_steps: int = Field(0, ge=0, description="Steps in which only the critic learns.")
