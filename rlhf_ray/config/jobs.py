"""The jobs that `job:` in a file chooses from: RL, pipelines, and the union of all."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from .algorithm import PPO, AdaptiveKL, AlgorithmConfig
from .data import DataConfig, PromptConfig
from .inference import EvaluateJob, SampleJob, ScoreJob, TokenizerJob
from .learner import CriticConfig, ReferenceConfig
from .rewards import ModelReward, Reward, RewardsConfig
from .rollout import RolloutConfig
from .run import ClusterConfig, LogConfig, RunConfig
from .section import Section
from .supervised import (
    ClassifyJob,
    Common,
    ILQLJob,
    PreferenceJob,
    PretrainJob,
    QAJob,
    RewardJob,
    Seq2SeqJob,
    SFTJob,
    TagJob,
)


class EvaluateRL(Section):
    """Held-out prompts; each evaluation has the same prompts and seeds."""

    every: int = Field(
        0, ge=0, description="Steps between evaluations; 0: only before the first and after the last step."
    )
    data: PromptConfig | None = Field(None, description="Held-out prompts; none: no evaluation.")
    greedy: bool = Field(False, description="Take the most likely token instead of sampling.")
    terms: list[Reward] = Field(
        default_factory=list,
        description="Terms that only score held-out answers; weight and standardise are ignored.",
    )
    num_shown: int = Field(3, ge=0, description="Prompts whose answers before and after training are shown at the end.")


class RLJob(Common):
    """Reinforcement learning; `algorithm.type` chooses which."""

    default_variants: ClassVar[dict[str, str]] = {"algorithm": "ppo"}

    job: Literal["ppo"] = "ppo"
    data: PromptConfig = Field(..., description="Prompts to train on.")
    ptx_data: DataConfig | None = Field(
        None, description="Pre-training text for the loss that algorithm.ptx_coef weighs."
    )
    algorithm: AlgorithmConfig = Field(default_factory=PPO, description="The RL algorithm and its loss.")
    rollout: RolloutConfig = Field(default_factory=RolloutConfig, description="Generation.")
    rewards: RewardsConfig = Field(..., description="The reward.")
    reference: ReferenceConfig = Field(
        default_factory=ReferenceConfig, description="The model that the KL penalty refers to."
    )
    critic: CriticConfig = Field(
        default_factory=CriticConfig,
        description="The critic; only algorithm.type: ppo has one.",
    )
    evaluate: EvaluateRL = Field(default_factory=EvaluateRL, description="Held-out evaluation.")

    @model_validator(mode="after")
    def _distinct_terms(self) -> RLJob:
        names = [t.name for t in [*self.rewards.terms, *self.evaluate.terms]]
        if len(set(names)) < len(names):
            raise ValueError(f"rewards.terms and evaluate.terms share a name: {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _samples_its_own_policy(self) -> RLJob:
        if self.rollout.engine.guide:
            raise ValueError(
                "rollout.engine.guide: training rollouts sample from the distribution that is trained; set it to 0 "
                "here, and guide job: evaluate or sample"
            )
        return self

    @model_validator(mode="after")
    def _batch_arithmetic(self) -> RLJob:
        samples = self.rollout.prompts_per_step * self.algorithm.group_size
        longest = self.data.max_prompt_tokens + self.rollout.max_new_tokens
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
        if longest > self.learner.micro_batch_tokens:
            raise ValueError(
                f"learner.micro_batch_tokens = {self.learner.micro_batch_tokens} is less than the longest sequence, "
                f"data.max_prompt_tokens + rollout.max_new_tokens = {longest}"
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
                f"algorithm.kl.controller.horizon = {controller.horizon:g} must exceed a fifth of the "
                f"{samples} samples of a step"
            )
        if (self.algorithm.ptx_coef > 0) != (self.ptx_data is not None):
            raise ValueError("algorithm.ptx_coef above 0 and ptx_data go together")
        return self

    @model_validator(mode="after")
    def _steps_are_used(self) -> RLJob:
        steps = [t.name for t in self.rewards.terms if isinstance(t, ModelReward) and t.steps is not None]
        if steps and not self.algorithm.token_advantages:
            raise ValueError(
                f"rewards.terms: '{steps[0]}' rewards steps, but algorithm.type {self.algorithm.type} has one "
                "advantage for a whole answer; take ppo, reinforce or reinforce_plus_plus"
            )
        return self

    @property
    def all_rewards(self) -> RewardsConfig:
        """What the reward workers compute: the terms of the reward, then the terms of `evaluate` that only judge."""
        return self.rewards.model_copy(update={"terms": [*self.rewards.terms, *self.evaluate.terms]})

    @property
    def needs_reference(self) -> bool:
        """Whether there is a reference model: for a KL penalty, or for the KL of held-out answers."""
        return self.algorithm.kl.coef > 0 or self.evaluate.data is not None

    @property
    def columns_to_annotate(self) -> list[str]:
        """The columns that the learner computes before its updates.

        If a step has a single update, its old log-probs are those that the update computes itself.
        """
        a = self.algorithm
        columns = []
        if a.kl.coef > 0 or a.epochs * a.num_mini_batches > 1:
            columns.append("old_log_probs")
        if a.kl.coef > 0:
            columns.append("ref_log_probs")
        if a.has_critic:
            columns.append("values")
        return columns

    @property
    def reward_model(self) -> ModelReward | None:
        """The first reward model among the terms."""
        return next((t for t in self.rewards.terms if isinstance(t, ModelReward)), None)


TrainingJob = (
    RLJob | PretrainJob | SFTJob | RewardJob | PreferenceJob | ILQLJob | ClassifyJob | TagJob | QAJob | Seq2SeqJob
)
"""A job that trains one model in steps."""

Single = TrainingJob | EvaluateJob | SampleJob | ScoreJob | TokenizerJob
SingleJob = Annotated[Single, Field(discriminator="job")]


STAGE, FILE = "stage:", "file:"
StageName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


class PipelineJob(Section):
    """Stages that run one after the other, in one Ray session.

    In a path, 'stage:NAME' is the model of an earlier stage, and 'stage:NAME/FILE' a file of its run.
    """

    job: Literal["pipeline"] = "pipeline"
    run: RunConfig = Field(
        default_factory=RunConfig, description="Run directory, with a folder for each stage, and seed."
    )
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="Ray cluster, for all stages.")
    log: LogConfig = Field(default_factory=LogConfig, description="Where metrics go, for all stages.")
    files: dict[StageName, str | dict[str, Any]] = Field(
        default_factory=dict,
        description="Data or models that several stages share, by name: a path, or keys of a section. A "
        "stage uses one with 'path: file:NAME'.",
    )
    stages: dict[StageName, SingleJob] = Field(
        ..., min_length=1, description="The jobs by name, in the order in which they run."
    )

    @model_validator(mode="before")
    @classmethod
    def _named_files(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("files"), dict):
            return data
        return {**data, "stages": _with_files(data.get("stages"), data["files"])}

    @model_validator(mode="after")
    def _stages_fit(self) -> PipelineJob:
        earlier: list[str] = []
        for name, stage in self.stages.items():
            for key, shared in (("run", RunConfig()), ("cluster", ClusterConfig())):
                if getattr(stage, key) != shared:
                    raise ValueError(f"stages.{name}.{key}: stages share the pipeline's; set it there")
            for reference in _references(stage.model_dump(mode="json")):
                if reference not in earlier:
                    names = ", ".join(earlier) or "none"
                    raise ValueError(
                        f"stages.{name}: '{STAGE}{reference}' names no earlier stage (earlier stages: {names})"
                    )
            earlier.append(name)
        return self


def _with_files(node: Any, files: dict[str, Any]) -> Any:
    """``node`` with the keys of the named file in each section whose path is 'file:NAME'; the section's keys win."""
    if isinstance(node, list):
        return [_with_files(value, files) for value in node]
    if not isinstance(node, dict):
        return node
    path = node.get("path")
    file_keys: dict[str, Any] = {}
    if isinstance(path, str) and path.startswith(FILE):
        name = path.removeprefix(FILE)
        if name not in files:
            raise ValueError(f"'{path}' is not one of files ({', '.join(files) or 'there are none'})")
        file_keys = files[name] if isinstance(files[name], dict) else {"path": files[name]}
        node = {key: value for key, value in node.items() if key != "path"}
    return {**file_keys, **{key: _with_files(value, files) for key, value in node.items()}}


def _references(node: Any) -> list[str]:
    """The names of the stages that paths in ``node`` refer to."""
    if isinstance(node, dict):
        return [r for value in node.values() for r in _references(value)]
    if isinstance(node, list):
        return [r for value in node for r in _references(value)]
    return [node.removeprefix(STAGE).partition("/")[0]] if isinstance(node, str) and node.startswith(STAGE) else []


Job = Annotated[Single | PipelineJob, Field(discriminator="job")]
