"""The reward: a weighted sum of named terms."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .section import Section


class RewardTerm(Section):
    """What every term has."""

    name: str = Field(..., pattern=r"^[A-Za-z0-9_-]+$", description="Name in metrics and trajectories.")
    weight: float = Field(1.0, description="Factor in the total; 0 only records it.")
    on_error: Literal["fail", "drop"] = Field(
        "fail", description="Where there is no finite number: stop the run, or drop the samples, counted."
    )


class RuleReward(RewardTerm):
    """A rule that ships with the package (rewards/rules.py)."""

    type: Literal["rule"] = "rule"
    rule: str = Field(..., description="Which rule.")
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the rule.")


class FunctionReward(RewardTerm):
    """A function of the user with TRL's signature: f(prompts, completions, **columns) -> list[float]."""

    type: Literal["function"] = "function"
    path: str = Field(..., pattern=r"^.+\.py:[A-Za-z_]\w*$", description="The function, as path/to/file.py:function.")
    timeout_s: float = Field(60.0, gt=0, description="Seconds one call may take before it is killed.")
    retries: int = Field(2, ge=0, description="How often a failed call is tried again.")


class NeuralReward(RewardTerm):
    """What terms with a model have."""

    path: str = Field(..., description="Hugging Face directory or id; 'stage:NAME' for an earlier pipeline stage.")
    micro_batch_tokens: int = Field(8192, ge=1, description="Tokens of one forward pass.")
    standardise: bool = Field(
        True, description="Subtract mean, divide by deviation of the starting policy's scores, frozen."
    )


class ModelReward(NeuralReward):
    """A sequence-classification model with one logit."""

    type: Literal["model"] = "model"
    steps: str | None = Field(
        None,
        min_length=1,
        description="A process reward: score each step of an answer at its end, which is this text; not standardised.",
    )


class LikelihoodReward(NeuralReward):
    """Fluency: the mean log-prob of an answer's tokens, in nats, under a causal language model that stays as it is."""

    type: Literal["likelihood"] = "likelihood"


Reward = Annotated[RuleReward | FunctionReward | ModelReward | LikelihoodReward, Field(discriminator="type")]


class RewardsConfig(Section):
    """The terms and who computes them."""

    num_workers: int = Field(1, ge=1, description="Reward workers.")
    terms: list[Reward] = Field(..., min_length=1, description="The named terms; the reward is their weighted sum.")

    @model_validator(mode="after")
    def _distinct_names(self) -> RewardsConfig:
        names = [t.name for t in self.terms]
        if len(set(names)) < len(names):
            raise ValueError(f"two terms share a name: {', '.join(names)}")
        return self
