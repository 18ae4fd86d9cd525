"""Options of the reward, a weighted sum of named terms."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .dtype import Dtype
from .section import Section

STANDARDISE: bool = Field(
    True,
    description="Normalise scores with the mean and deviation of the starting policy's scores, which then stay fixed.",
)


class RewardTerm(Section):
    """What all terms share."""

    name: str = Field(..., pattern=r"^[A-Za-z0-9_-]+$", description="Name in metrics and trajectories.")
    weight: float = Field(1.0, description="Factor in the reward; 0 records the term without using it.")
    on_error: Literal["fail", "drop"] = Field(
        "fail", description="If the term fails or is not finite: stop the run, or drop and count these samples."
    )

    @property
    def scores_steps(self) -> bool:
        """Whether it scores steps of an answer, not the whole."""
        return False


class RuleReward(RewardTerm):
    """A rule that ships with the package (rewards/rules.py)."""

    type: Literal["rule"] = "rule"
    rule: str = Field(..., description="Name of the rule in rewards/rules.py.")
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the rule.")


class FunctionReward(RewardTerm):
    """Your function, with TRL's signature: f(prompts, completions, **columns) -> list of float or None."""

    type: Literal["function"] = "function"
    path: str = Field(..., pattern=r"^.+\.py:[A-Za-z_]\w*$", description="The function, as path/to/file.py:function.")
    timeout_s: float = Field(60.0, gt=0, description="Seconds that one call may take; then it is killed.")
    retries: int = Field(2, ge=0, description="How often a failed call is tried again.")


class NeuralReward(RewardTerm):
    """What terms with a model share."""

    path: str = Field(..., description="Hugging Face directory or id; 'stage:NAME' is the model of an earlier stage.")
    micro_batch_tokens: int = Field(8192, ge=1, description="Tokens of one forward pass; lower it if memory runs out.")
    dtype: Dtype = Field("auto", description="Dtype of its weights; auto is bfloat16 on GPUs, float32 on a CPU.")


class ModelReward(NeuralReward):
    """A sequence-classification model with one logit."""

    type: Literal["model"] = "model"
    standardise: bool = STANDARDISE
    steps: str | None = Field(
        None,
        min_length=1,
        description="Text that ends a step, for a process reward: each step is scored at its end, not "
        "normalised; none: one score for each answer.",
    )

    @property
    def scores_steps(self) -> bool:
        """As the term says."""
        return self.steps is not None


class LikelihoodReward(NeuralReward):
    """Fluency: the mean log-prob of an answer's tokens, in nats, under a frozen causal language model."""

    type: Literal["likelihood"] = "likelihood"
    standardise: bool = STANDARDISE


class ClassifierReward(NeuralReward):
    """A classifier's probability that a completion is of a class."""

    type: Literal["classifier"] = "classifier"
    column: str = Field("label", description="Column of the dataset with the class of each example.")
    label: str | None = Field(None, description="One class for all examples; none: the column's.")


Reward = Annotated[
    RuleReward | FunctionReward | ModelReward | LikelihoodReward | ClassifierReward, Field(discriminator="type")
]


class Ensemble(Section):
    """Reward models that count as one term with their common weight; their normalised scores are combined.

    Coste et al. 2023, arXiv 2310.02743.
    """

    members: list[str] = Field(..., min_length=2, description="Names of terms that are normalised reward models.")
    combine: Literal["mean", "min", "uncertainty"] = Field(
        "min", description="Mean of the scores, lowest score, or (uncertainty) mean minus coef times variance."
    )
    coef: float = Field(0.1, ge=0, description="Weight of the variance; only uncertainty uses it.")


class RewardsConfig(Section):
    """The terms of the reward and the workers that compute them."""

    num_workers: int = Field(1, ge=1, description="Reward workers; each has all reward models.")
    terms: list[Reward] = Field(..., min_length=1, description="The named terms; the reward is their weighted sum.")
    ensembles: list[Ensemble] = Field(default_factory=list, description="Reward models that count as one term.")

    @model_validator(mode="after")
    def _distinct_names(self) -> RewardsConfig:
        names = [t.name for t in self.terms]
        if len(set(names)) < len(names):
            raise ValueError(f"two terms share a name: {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _ensembles_have_reward_models(self) -> RewardsConfig:
        terms, seen = {t.name: t for t in self.terms}, set[str]()
        for ensemble in self.ensembles:
            for name in ensemble.members:
                term = terms.get(name)
                if not isinstance(term, ModelReward) or not term.standardise or term.steps is not None:
                    raise ValueError(f"ensembles: '{name}' is not a term with type: model and standardise: true")
                if name in seen:
                    raise ValueError(f"ensembles: '{name}' is a member twice; name it once")
                seen.add(name)
            if len({terms[name].weight for name in ensemble.members}) > 1:
                raise ValueError(f"ensembles: {', '.join(ensemble.members)} have different weights; give all the same")
        return self
