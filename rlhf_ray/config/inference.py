"""Jobs without a learner: a model's answers, judged or kept as data; a tokenizer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .data import DataConfig, PromptConfig
from .model import ModelConfig
from .rewards import ModelReward, RewardsConfig
from .rollout import RolloutConfig
from .run import ClusterConfig, LogConfig, RunConfig
from .section import Section


class GenerationJob(Section):
    """Prompts, a model that answers, and terms that judge."""

    run: RunConfig = Field(default_factory=RunConfig, description="Run directory and seed.")
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="Ray cluster and devices.")
    log: LogConfig = Field(default_factory=LogConfig, description="Where metrics go.")
    model: ModelConfig = Field(..., description="The model that answers; a run directory's is its model/.")
    data: PromptConfig = Field(..., description="Prompts, with the columns that terms and measures read.")
    rollout: RolloutConfig = Field(default_factory=RolloutConfig, description="How answers are sampled.")
    rewards: RewardsConfig = Field(..., description="What judges each answer: rules, your functions, reward models.")
    samples: int = Field(1, ge=1, description="Answers to each prompt.")


class EvaluateJob(GenerationJob):
    """A model's answers to held-out prompts, judged: `rlhf-ray evaluate MODEL`, or a stage of a pipeline."""

    job: Literal["evaluate"] = "evaluate"
    against: str | None = Field(
        None, description="Another model, never guided, for the share of answers in which this one is better."
    )
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


class SampleJob(GenerationJob):
    """A model's best answers as data for another job: RUN/kept.jsonl (best-of-n, rejection sampling, pairs)."""

    job: Literal["sample"] = "sample"
    samples: int = Field(8, ge=1, description="Answers to each prompt.")
    keep: Literal["best", "all", "pairs"] = Field(
        "best",
        description="Of each prompt the best answer, all of them, or the best and the worst as a pair where they differ.",
    )
    above: float | None = Field(
        None, description="Keep only answers (of a pair: chosen ones) with a reward above this."
    )

    @model_validator(mode="after")
    def _pairs_need_two(self) -> SampleJob:
        if self.keep == "pairs" and self.samples < 2:
            raise ValueError("keep: pairs compares the answers to a prompt: samples must be at least 2")
        return self


class ScoreJob(Section):
    """Judges the texts of a dataset with reward terms, without a model that answers: RUN/scored.jsonl."""

    job: Literal["score"] = "score"
    run: RunConfig = Field(default_factory=RunConfig, description="Run directory and seed.")
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="Ray cluster and devices.")
    log: LogConfig = Field(default_factory=LogConfig, description="Where metrics go.")
    data: DataConfig = Field(..., description="Rows with `text`, or with `prompt` and `completion`.")
    rewards: RewardsConfig = Field(
        ..., description="What judges each text: rules, your functions, models, classifiers."
    )

    @model_validator(mode="after")
    def _whole_texts(self) -> ScoreJob:
        steps = [t.name for t in self.rewards.terms if isinstance(t, ModelReward) and t.steps is not None]
        if steps:
            raise ValueError(
                f"rewards.terms: '{steps[0]}' rewards the steps of an answer's tokens; texts have one score"
            )
        return self


class TokenizerJob(Section):
    """A tokenizer from a corpus; a later stage takes it with `model.tokenizer: stage:NAME`."""

    job: Literal["tokenizer"] = "tokenizer"
    run: RunConfig = Field(default_factory=RunConfig, description="Run directory and seed.")
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="Ray cluster and devices.")
    log: LogConfig = Field(default_factory=LogConfig, description="Where metrics go.")
    data: DataConfig = Field(..., description="The corpus.")
    texts: list[str] = Field(default_factory=list, description="Columns that are read; none named: all with text.")
    algorithm: Literal["bpe", "wordpiece"] = Field("bpe", description="Byte-level BPE, or WordPiece.")
    vocab_size: int = Field(8192, ge=300, description="Tokens, special ones included.")
    lowercase: bool = Field(False, description="Whether capitals are folded.")
