"""Policy-gradient algorithms: each variant carries its own defaults."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from .section import Section

# Descriptions of options that several algorithms have with different defaults.
GROUP_SIZE = "Samples of one prompt."
EPOCHS = "Passes over the step's samples."
MINI_BATCHES = "Optimizer steps a pass."
CLIP_HIGH = "The ratio is clipped at 1 + clip_high."
DUAL_CLIP = "Bound on the loss ratio where the advantage is negative."
LOSS_OVER = "What the loss is averaged over."
KL = "The penalty for leaving the reference."
DYNAMIC_SAMPLING = "Refill groups whose rewards are all equal."
GAMMA = "Discount."

LossOver = Literal["tokens", "sequences", "max_tokens"]


class FixedKL(Section):
    """A constant coefficient."""

    type: Literal["fixed"] = "fixed"


class AdaptiveKL(Section):
    """Moves the coefficient towards a target KL (Ziegler et al., 2019)."""

    type: Literal["adaptive"] = "adaptive"
    target: float = Field(6.0, gt=0, description="KL to aim for, in nats summed over a sequence.")
    horizon: float = Field(10000.0, gt=0, description="Samples over which the coefficient moves.")


class KLConfig(Section):
    """The penalty for leaving the reference."""

    coef: float = Field(0.0, ge=0, description="Coefficient; 0 leaves the reference out.")
    where: Literal["reward", "loss"] = Field(
        "reward", description="Subtract it from each token's reward, or add it to the loss."
    )
    estimator: Literal["k1", "k2", "k3"] = Field("k1", description="Schulman's estimators; in the loss k2 or k3.")
    controller: Annotated[FixedKL | AdaptiveKL, Field(discriminator="type")] = Field(
        default_factory=FixedKL, description="What moves the coefficient."
    )

    @model_validator(mode="after")
    def _estimator_fits(self) -> KLConfig:
        if self.where == "loss" and self.estimator == "k1":
            raise ValueError("k1 in the loss has zero expected gradient on-policy; use estimator k2 or k3")
        if self.where == "reward" and self.estimator != "k1":
            raise ValueError("the KL in the reward is k1; k2 and k3 belong to where: loss")
        if isinstance(self.controller, AdaptiveKL) and self.coef == 0:
            raise ValueError("an adaptive controller multiplies coef, and 0 stays 0; give the coef to start from")
        return self


def kl_field(**values: Any) -> Any:
    """The field `kl` of an algorithm whose penalty starts from these values."""
    return Field(default_factory=lambda: KLConfig(**values), description=KL)


class DynamicSampling(Section):
    """Keep only groups whose task reward varies (DAPO, Yu et al., 2025)."""

    max_rounds: int = Field(
        3, ge=1, description="Rounds of rollouts to fill a step; on shortage it trains on what there is."
    )


class Overlong(Section):
    """A soft penalty on long responses (DAPO, Yu et al., 2025)."""

    buffer: int = Field(..., ge=1, description="Tokens before max_new_tokens where the penalty starts to grow.")
    coef: float = Field(1.0, gt=0, description="Penalty at max_new_tokens.")


class Algorithm(Section):
    """What all variants share.

    ``has_critic``: a model of its own predicts values. ``greedy_baseline``: a greedy sample of each prompt comes on top
    of ``group_size``. ``token_advantages``: tokens of a response may have different advantages, so that process rewards
    count.
    """

    has_critic: ClassVar[bool] = False
    greedy_baseline: ClassVar[bool] = False
    token_advantages: ClassVar[bool] = False

    group_size: int = Field(8, ge=1, description=GROUP_SIZE)
    clip_high: float = Field(0.2, gt=0, description=CLIP_HIGH)
    loss_over: LossOver = Field("tokens", description=LOSS_OVER)
    epochs: int = Field(1, ge=1, description=EPOCHS)
    num_mini_batches: int = Field(1, ge=1, description=MINI_BATCHES)
    kl: KLConfig = kl_field()
    entropy_coef: float = Field(0.0, ge=0, description="Coefficient of the entropy bonus.")
    ptx_coef: float = Field(
        0.0, ge=0, description="Coefficient of the cross-entropy on ptx_data (Ouyang et al., 2022)."
    )
    importance: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Truncated importance weights, engine to learner; "
        "auto: off only for transformers in float32 on both sides, ahead 0.",
    )
    importance_cap: float = Field(2.0, gt=0, description="Where the importance weight is truncated.")
    truncated: Literal["score", "penalty", "mask", "bootstrap"] = Field(
        "score", description="What a sample that hit the length limit gets."
    )
    truncated_penalty: float = Field(1.0, ge=0, description="Subtracted from its reward where truncated: penalty.")
    dynamic_sampling: DynamicSampling | None = Field(None, description=DYNAMIC_SAMPLING)
    overlong: Overlong | None = Field(None, description="Soft penalty on long responses.")

    @property
    def samples_per_prompt(self) -> int:
        """Rollouts of one prompt in a step, the greedy baseline's included."""
        return self.group_size + self.greedy_baseline

    @model_validator(mode="after")
    def _consistent(self) -> Algorithm:
        if self.truncated == "bootstrap" and not self.has_critic:
            raise ValueError("truncated: bootstrap needs a critic, which only ppo has")
        if self.dynamic_sampling is not None and self.group_size < 2:
            raise ValueError("dynamic_sampling compares the samples of a prompt: group_size must be at least 2")
        return self


class Grouped(Algorithm):
    """Algorithms that compare the samples of one prompt."""

    group_size: int = Field(8, ge=2, description=GROUP_SIZE)


class TokenRatio(Algorithm):
    """Algorithms that clip the ratio of each token."""

    clip_low: float = Field(0.2, gt=0, description="The ratio is clipped at 1 - clip_low.")
    dual_clip: float | None = Field(None, gt=1, description=DUAL_CLIP)


class PPO(TokenRatio):
    """PPO with a critic (Schulman et al., 2017; arXiv 1707.06347)."""

    has_critic: ClassVar[bool] = True
    token_advantages: ClassVar[bool] = True
    type: Literal["ppo"] = "ppo"
    group_size: int = Field(1, ge=1, description=GROUP_SIZE)
    dual_clip: float | None = Field(3.0, gt=1, description=DUAL_CLIP)
    epochs: int = Field(2, ge=1, description=EPOCHS)
    num_mini_batches: int = Field(2, ge=1, description=MINI_BATCHES)
    kl: KLConfig = kl_field(coef=0.05)
    gamma: float = Field(1.0, gt=0, le=1, description=GAMMA)
    lam: float = Field(0.95, ge=0, le=1, description="GAE's lambda.")
    value_clip: float | None = Field(
        0.2, gt=0, description="How far a value may move from the old one; none: not clipped."
    )


class GRPO(Grouped, TokenRatio):
    """GRPO (Shao et al., 2024; arXiv 2402.03300)."""

    type: Literal["grpo"] = "grpo"
    loss_over: LossOver = Field("sequences", description=LOSS_OVER)


class DrGRPO(Grouped, TokenRatio):
    """Dr.GRPO: no division by the deviation, constant length normaliser (Liu et al., 2025; arXiv 2503.20783)."""

    type: Literal["dr_grpo"] = "dr_grpo"
    loss_over: LossOver = Field("max_tokens", description=LOSS_OVER)


class DAPO(Grouped, TokenRatio):
    """GRPO's advantage with clip-higher, token-level loss and dynamic sampling (Yu et al., 2025; arXiv 2503.14476)."""

    type: Literal["dapo"] = "dapo"
    clip_high: float = Field(0.28, gt=0, description=CLIP_HIGH)
    dynamic_sampling: DynamicSampling | None = Field(default_factory=DynamicSampling, description=DYNAMIC_SAMPLING)


class RLOO(Grouped, TokenRatio):
    """Leave-one-out REINFORCE (Ahmadian et al., 2024; arXiv 2402.14740)."""

    type: Literal["rloo"] = "rloo"
    loss_over: LossOver = Field("sequences", description=LOSS_OVER)
    kl: KLConfig = kl_field(coef=0.05)


class Reinforce(TokenRatio):
    """REINFORCE (Williams, 1992): the return itself, without baseline or whitening.

    With one update a step nothing is clipped.
    """

    token_advantages: ClassVar[bool] = True
    type: Literal["reinforce"] = "reinforce"
    group_size: int = Field(1, ge=1, description=GROUP_SIZE)
    gamma: float = Field(1.0, gt=0, le=1, description=GAMMA)


class ReinforcePlusPlus(TokenRatio):
    """REINFORCE++ (Hu, 2025; arXiv 2501.03262)."""

    token_advantages: ClassVar[bool] = True
    type: Literal["reinforce_plus_plus"] = "reinforce_plus_plus"
    group_size: int = Field(1, ge=1, description=GROUP_SIZE)
    gamma: float = Field(1.0, gt=0, le=1, description=GAMMA)
    kl: KLConfig = kl_field(coef=0.01)


class ReinforcePlusPlusBaseline(Grouped, TokenRatio):
    """REINFORCE++ with the group mean as baseline and k2 in the loss (Hu, 2025; arXiv 2501.03262)."""

    type: Literal["reinforce_plus_plus_baseline"] = "reinforce_plus_plus_baseline"
    kl: KLConfig = kl_field(coef=0.01, where="loss", estimator="k2")


class ReMax(TokenRatio):
    """ReMax: the greedy sample's reward is the baseline (Li et al., 2023; arXiv 2310.10505)."""

    greedy_baseline: ClassVar[bool] = True
    type: Literal["remax"] = "remax"
    group_size: int = Field(1, ge=1, description="Samples of one prompt; a greedy one comes on top.")
    kl: KLConfig = kl_field(coef=0.01)


class GSPO(Grouped):
    """Sequence-level ratio and clip (Zheng et al., 2025; arXiv 2507.18071)."""

    type: Literal["gspo"] = "gspo"
    clip_low: float = Field(3e-4, gt=0, description="The sequence ratio is clipped at 1 - clip_low.")
    clip_high: float = Field(4e-4, gt=0, description="The sequence ratio is clipped at 1 + clip_high.")
    loss_over: Literal["sequences"] = Field("sequences", description=LOSS_OVER)


class CISPO(Grouped):
    """Clipped importance weights, detached (MiniMax, 2025; arXiv 2506.13585)."""

    type: Literal["cispo"] = "cispo"


class OnlineDPO(Grouped):
    """DPO on the best and the worst of a prompt's samples (Guo et al., 2024; arXiv 2402.04792); kl.coef is its beta.

    Ratios, their clips, importance weights and loss_over belong to the other algorithms and are not used.
    """

    type: Literal["online_dpo"] = "online_dpo"
    group_size: int = Field(2, ge=2, description="Samples of one prompt; the best and the worst are a pair.")
    epochs: Literal[1] = Field(1, description=EPOCHS)
    num_mini_batches: Literal[1] = Field(1, description="Optimizer steps a pass; a pair is never separated.")
    kl: KLConfig = Field(
        default_factory=lambda: KLConfig(coef=0.1, where="loss", estimator="k3"),
        description="coef is DPO's beta; where and estimator are not used.",
    )

    @model_validator(mode="after")
    def _has_a_beta(self) -> OnlineDPO:
        if self.kl.coef == 0 or self.kl.where == "reward":
            raise ValueError("online_dpo: kl.coef is DPO's beta, above 0, with kl.where: loss")
        if self.entropy_coef > 0:
            raise ValueError("online_dpo has no entropy bonus; set entropy_coef: 0")
        return self


AlgorithmConfig = Annotated[
    PPO
    | GRPO
    | DrGRPO
    | DAPO
    | RLOO
    | Reinforce
    | ReinforcePlusPlus
    | ReinforcePlusPlusBaseline
    | ReMax
    | GSPO
    | CISPO
    | OnlineDPO,
    Field(discriminator="type"),
]
