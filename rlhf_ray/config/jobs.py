"""The jobs: what `job:` in a file chooses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .algorithm import PPO, AdaptiveKL, AlgorithmConfig
from .data import DataConfig, PromptConfig
from .learner import CriticConfig
from .model import ModelConfig
from .rewards import ModelReward, Reward, RewardsConfig
from .rollout import RolloutConfig
from .run import ClusterConfig, LogConfig, RunConfig
from .section import Section
from .supervised import ClassifyJob, Common, PreferenceJob, PretrainJob, QAJob, RewardJob, SFTJob, TagJob


class EvaluateRL(Section):
    """Held-out prompts, the same and with the same seeds every time."""

    every: int = Field(
        0, ge=0, description="Steps between evaluations; 0: before the first and after the last step only."
    )
    data: PromptConfig | None = Field(None, description="Held-out prompts; none: no evaluation.")
    greedy: bool = Field(False, description="Take the likeliest token instead of sampling.")
    terms: list[Reward] = Field(
        default_factory=list,
        description="Terms that only judge, as they score: without weight and standardise.",
    )
    num_shown: int = Field(3, ge=0, description="Samples shown side by side.")


class RLJob(Common):
    """Reinforcement learning; `algorithm.type` chooses which."""

    job: Literal["ppo"] = "ppo"
    data: PromptConfig = Field(..., description="Prompts to train on.")
    ptx_data: DataConfig | None = Field(None, description="Pre-training text for algorithm.ptx_coef.")
    algorithm: AlgorithmConfig = Field(default_factory=PPO, description="Advantage, ratio, clip and loss.")
    rollout: RolloutConfig = Field(default_factory=RolloutConfig, description="Generation.")
    rewards: RewardsConfig = Field(..., description="The reward.")
    critic: CriticConfig = Field(
        default_factory=CriticConfig,
        description="The critic; read by ppo alone, which has one.",
    )
    evaluate: EvaluateRL = Field(default_factory=EvaluateRL, description="Held-out evaluation.")

    @model_validator(mode="before")
    @classmethod
    def _ppo_unless_said(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("algorithm"), dict):
            data = {**data, "algorithm": {"type": "ppo", **data["algorithm"]}}
        return data

    @model_validator(mode="after")
    def _distinct_terms(self) -> RLJob:
        names = [t.name for t in [*self.rewards.terms, *self.evaluate.terms]]
        if len(set(names)) < len(names):
            raise ValueError(f"rewards.terms and evaluate.terms share a name: {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _batch_arithmetic(self) -> RLJob:
        samples = self.rollout.prompts_per_step * self.algorithm.group_size
        if samples % self.algorithm.num_mini_batches:
            raise ValueError(
                f"rollout.prompts_per_step * algorithm.group_size = {samples} samples do not divide into "
                f"algorithm.num_mini_batches = {self.algorithm.num_mini_batches} equal mini-batches"
            )
        if samples // self.algorithm.num_mini_batches < self.learner.num_workers:
            raise ValueError(
                f"a mini-batch of {samples // self.algorithm.num_mini_batches} samples leaves some of "
                f"learner.num_workers = {self.learner.num_workers} ranks without one"
            )
        if self.data.max_prompt_tokens + self.rollout.max_new_tokens > self.learner.micro_batch_tokens:
            raise ValueError(
                f"learner.micro_batch_tokens = {self.learner.micro_batch_tokens} is less than the longest sequence, "
                f"data.max_prompt_tokens + rollout.max_new_tokens = {self.data.max_prompt_tokens + self.rollout.max_new_tokens}"
            )
        overlong = self.algorithm.overlong
        if overlong is not None and overlong.buffer > self.rollout.max_new_tokens:
            raise ValueError(
                f"algorithm.overlong.buffer = {overlong.buffer} is more than "
                f"rollout.max_new_tokens = {self.rollout.max_new_tokens}"
            )
        controller = self.algorithm.kl.controller
        if isinstance(controller, AdaptiveKL) and samples >= 5 * controller.horizon:
            raise ValueError(
                f"algorithm.kl.controller.horizon = {controller.horizon:g} must exceed a fifth of the step's {samples} samples"
            )
        if (self.algorithm.ptx_coef > 0) != (self.ptx_data is not None):
            raise ValueError("algorithm.ptx_coef above 0 and ptx_data go together")
        return self

    @property
    def reward_model(self) -> ModelReward | None:
        """The first reward model among the terms."""
        return next((t for t in self.rewards.terms if isinstance(t, ModelReward)), None)


class EvaluateJob(Section):
    """A model's answers to held-out prompts, judged: `rlhf-ray evaluate MODEL`, or a stage of a pipeline."""

    job: Literal["evaluate"] = "evaluate"
    run: RunConfig = Field(default_factory=RunConfig, description="Run directory and seed.")
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="Ray cluster and devices.")
    log: LogConfig = Field(default_factory=LogConfig, description="Where metrics go.")
    model: ModelConfig = Field(..., description="The model that answers; a run directory's is its model/.")
    against: str | None = Field(
        None, description="Another model, for the share of answers in which this one is better."
    )
    data: PromptConfig = Field(..., description="Prompts, with the columns that terms and measures read.")
    rollout: RolloutConfig = Field(default_factory=RolloutConfig, description="How answers are sampled.")
    rewards: RewardsConfig = Field(..., description="What judges each answer: rules, your functions, reward models.")
    samples: int = Field(1, ge=1, description="Answers to each prompt.")
    greedy: bool = Field(True, description="Take the likeliest token instead of sampling.")
    measures: list[Literal["bleu", "chrf", "distinct_1", "distinct_2", "classes"]] = Field(
        default_factory=list, description="Measures of all answers together; classes: accuracy, F1, confusion matrix."
    )
    reference: str = Field("answer", description="Column with the right answer, or a list of them.")
    language: str | None = Field(
        None, description="Of the answers, for BLEU's tokenizer: zh, ja, ko; others need none."
    )
    pass_at: list[Annotated[int, Field(ge=1)]] = Field(
        default_factory=list, description="k of pass@k: a sample is right where a term gives more than 0.5."
    )
    groups: list[str] = Field(default_factory=list, description="Columns whose values are compared as groups.")
    num_shown: int = Field(3, ge=0, description="Answers shown.")

    @model_validator(mode="after")
    def _samples_suffice(self) -> EvaluateJob:
        if self.pass_at and max(self.pass_at) > self.samples:
            raise ValueError(f"pass_at {max(self.pass_at)} needs as many samples, and samples = {self.samples}")
        if self.greedy and self.samples > 1:
            raise ValueError(f"samples = {self.samples} greedy answers are all the same; set greedy: false")
        return self


SingleJob = Annotated[
    RLJob | PretrainJob | SFTJob | RewardJob | PreferenceJob | ClassifyJob | TagJob | QAJob | EvaluateJob,
    Field(discriminator="job"),
]


STAGE = "stage:"
StageName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


class PipelineJob(Section):
    """Stages in order, in one Ray session; 'stage:NAME' in a path is an earlier stage's model."""

    job: Literal["pipeline"] = "pipeline"
    run: RunConfig = Field(
        default_factory=RunConfig, description="Run directory (a stage's is a folder in it) and seed."
    )
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="Ray cluster, for all stages.")
    log: LogConfig = Field(default_factory=LogConfig, description="Where metrics go, for all stages.")
    stages: dict[StageName, SingleJob] = Field(..., min_length=1, description="Name: job.")

    @model_validator(mode="after")
    def _stages_fit(self) -> PipelineJob:
        earlier: list[str] = []
        for name, stage in self.stages.items():
            for key, shared in (("run", RunConfig()), ("cluster", ClusterConfig())):
                if getattr(stage, key) != shared:
                    raise ValueError(f"stages.{name}.{key}: stages share the pipeline's; set it there")
            for wanted in _references(stage.model_dump(mode="json")):
                if wanted not in earlier:
                    there = ", ".join(earlier) or "none"
                    raise ValueError(f"stages.{name}: '{STAGE}{wanted}' names no earlier stage (there is: {there})")
            earlier.append(name)
        return self


def _references(node: Any) -> list[str]:
    """The stages that paths below ``node`` name."""
    if isinstance(node, dict):
        return [r for value in node.values() for r in _references(value)]
    if isinstance(node, list):
        return [r for value in node for r in _references(value)]
    return [node.removeprefix(STAGE)] if isinstance(node, str) and node.startswith(STAGE) else []


Job = Annotated[
    RLJob | PretrainJob | SFTJob | RewardJob | PreferenceJob | ClassifyJob | TagJob | QAJob | EvaluateJob | PipelineJob,
    Field(discriminator="job"),
]
