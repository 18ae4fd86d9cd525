"""Supervised jobs: one model, examples, and a loss."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from .data import DataConfig
from .learner import LearnerConfig
from .model import ModelConfig
from .preferences import DPO, PreferenceConfig
from .run import CheckpointConfig, ClusterConfig, LogConfig, RunConfig
from .section import Section


class Common(Section):
    """What every single-stage job has."""

    run: RunConfig = Field(default_factory=RunConfig, description="Run directory and seed.")
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="Ray cluster and devices.")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="When checkpoints are written.")
    log: LogConfig = Field(default_factory=LogConfig, description="Where metrics go.")
    model: ModelConfig = Field(..., description="The model that is trained.")
    learner: LearnerConfig = Field(default_factory=LearnerConfig, description="The learner gang and its optimizer.")
    num_steps: int = Field(..., ge=1, description="Optimizer steps (supervised) or rollout-and-learn steps (ppo).")


class EvaluateSupervised(Section):
    """Held-out examples."""

    every: int = Field(0, ge=0, description="Steps between evaluations; 0: after the last step only.")
    data: DataConfig | None = Field(None, description="Held-out examples; none: no evaluation.")


class Supervised(Common):
    """What the supervised jobs share."""

    data: DataConfig = Field(..., description="Examples to train on.")
    evaluate: EvaluateSupervised = Field(default_factory=EvaluateSupervised, description="Held-out evaluation.")
    batch_size: int = Field(32, ge=1, description="Examples of one optimizer step (pairs count once).")
    max_length: int = Field(512, ge=2, description="Longest sequence, in tokens.")

    @model_validator(mode="after")
    def _fits(self) -> Supervised:
        if self.max_length > self.learner.micro_batch_tokens:
            raise ValueError(
                f"learner.micro_batch_tokens = {self.learner.micro_batch_tokens} is less than max_length = {self.max_length}"
            )
        if self.batch_size < self.learner.num_workers:
            raise ValueError(
                f"batch_size = {self.batch_size} is less than learner.num_workers = {self.learner.num_workers}"
            )
        return self


class PretrainJob(Supervised):
    """Causal language modelling on the column `text`."""

    job: Literal["pretrain"] = "pretrain"


class SFTJob(Supervised):
    """Supervised fine-tuning on `prompt`, `completion` (or `messages`)."""

    job: Literal["sft"] = "sft"


class RewardJob(Supervised):
    """A reward model from `prompt`, `chosen`, `rejected` pairs or from `text`, `label`."""

    job: Literal["reward"] = "reward"
    objective: Literal["pairwise", "labelled"] = Field(
        "pairwise", description="Bradley-Terry on pairs, or cross-entropy on labels 0 and 1."
    )


class PreferenceJob(Supervised):
    """Preference optimisation without sampling: `prompt`, `chosen`, `rejected`; for kto `prompt`, `completion`, `label`."""

    job: Literal["dpo"] = "dpo"
    objective: PreferenceConfig = Field(default_factory=DPO, description="The loss.")

    @model_validator(mode="before")
    @classmethod
    def _dpo_unless_said(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("objective"), dict):
            data = {**data, "objective": {"type": "dpo", **data["objective"]}}
        return data
