"""The reward: a weighted sum of named terms."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .section import Section

STANDARDISE: bool = Field(
    True, description="Subtract mean, divide by deviation of the starting policy's scores, frozen."
)


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


class ModelReward(NeuralReward):
    """A sequence-classification model with one logit."""

    type: Literal["model"] = "model"
    standardise: bool = STANDARDISE
    steps: str | None = Field(
        None,
        min_length=1,
        description="A process reward: score each step of an answer at its end, which is this text; not standardised.",
    )


class LikelihoodReward(NeuralReward):
    """Fluency: the mean log-prob of an answer's tokens, in nats, under a causal language model that stays as it is."""

    type: Literal["likelihood"] = "likelihood"
    standardise: bool = STANDARDISE


class ClassifierReward(NeuralReward):
    """A classifier's probability that a completion is of a class."""

    type: Literal["classifier"] = "classifier"
    column: str = Field("label", description="The dataset's column that names the class of each example.")
    label: str | None = Field(None, description="One class for all, in place of a column.")


Reward = Annotated[
    RuleReward | FunctionReward | ModelReward | LikelihoodReward | ClassifierReward, Field(discriminator="type")
]


class Ensemble(Section):
    """Reward models that count as one term, with their common weight: their standardised scores are combined.

    Coste et al. 2023, arXiv 2310.02743.
    """

    members: list[str] = Field(..., min_length=2, description="Names of the terms, standardised reward models.")
    combine: Literal["mean", "min", "uncertainty"] = Field(
        "min", description="The mean of the scores, the lowest, or the mean less coef times the variance."
    )
    coef: float = Field(0.1, ge=0, description="Of uncertainty: what a variance of 1 costs.")


class RewardsConfig(Section):
    """The terms and who computes them."""

    num_workers: int = Field(1, ge=1, description="Reward workers.")
    terms: list[Reward] = Field(..., min_length=1, description="The named terms; the reward is their weighted sum.")
    ensembles: list[Ensemble] = Field(
        default_factory=list, description="Terms that are reward models of one thing, and count as one."
    )

    @model_validator(mode="after")
    def _distinct_names(self) -> RewardsConfig:
        names = [t.name for t in self.terms]
        if len(set(names)) < len(names):
            raise ValueError(f"two terms share a name: {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _ensembles_are_sound(self) -> RewardsConfig:
        terms, seen = {t.name: t for t in self.terms}, set[str]()
        for ensemble in self.ensembles:
            for name in ensemble.members:
                term = terms.get(name)
                if not isinstance(term, ModelReward) or not term.standardise or term.steps is not None:
                    raise ValueError(f"ensembles: '{name}' is no standardised reward model among the terms")
                if name in seen:
                    raise ValueError(f"ensembles: '{name}' is a member twice")
                seen.add(name)
            if len({terms[name].weight for name in ensemble.members}) > 1:
                raise ValueError(f"ensembles: {', '.join(ensemble.members)} have different weights; give all the same")
        return self
