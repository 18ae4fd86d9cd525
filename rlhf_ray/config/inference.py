"""Jobs without a learner: evaluate, sample, score, tokenizer."""

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
    """What the jobs that generate share: prompts, a model that answers, and terms that score the answers."""

    run: RunConfig = Field(default_factory=RunConfig, description="Run directory and seed.")
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="Ray cluster and devices.")
    log: LogConfig = Field(default_factory=LogConfig, description="Where metrics go.")
    model: ModelConfig = Field(..., description="The model that answers; of a run, RUN/model.")
    data: PromptConfig = Field(..., description="Prompts, and the columns that terms and measures read.")
    rollout: RolloutConfig = Field(default_factory=RolloutConfig, description="How answers are sampled.")
    rewards: RewardsConfig = Field(
        ..., description="Terms that score each answer: rules, your functions, reward models."
    )
    samples: int = Field(1, ge=1, description="Answers to each prompt.")


class EvaluateJob(GenerationJob):
    """Scores a model's answers to held-out prompts: `rlhf-ray evaluate MODEL`, or a stage of a pipeline."""

    job: Literal["evaluate"] = "evaluate"
    against: str | None = Field(
        None, description="A second model, never guided, to compare with: the share of prompts that this model wins."
    )
    greedy: bool = Field(True, description="Take the most likely token instead of sampling.")
    measures: list[Literal["bleu", "chrf", "distinct_1", "distinct_2", "classes"]] = Field(
        default_factory=list, description="Measures over all answers; classes: accuracy, F1, confusion matrix."
    )
    reference: str = Field("answer", description="Column with the right answer, or a list of them.")
    language: str | None = Field(
        None, description="Language of the answers, for BLEU's tokenizer: zh, ja or ko; none for other languages."
    )
    pass_at: list[Annotated[int, Field(ge=1)]] = Field(
        default_factory=list, description="Values of k for pass@k; a sample is correct if a term scores it above 0.5."
    )
    groups: list[str] = Field(
        default_factory=list, description="Columns by whose values the answers are grouped and compared."
    )
    num_shown: int = Field(3, ge=0, description="Answers shown at the end.")

    @model_validator(mode="after")
    def _samples_suffice(self) -> EvaluateJob:
        if self.pass_at and max(self.pass_at) > self.samples:
            raise ValueError(f"pass_at = {max(self.pass_at)} needs as many samples, but samples = {self.samples}")
        if self.greedy and self.samples > 1:
            raise ValueError(f"samples = {self.samples} greedy answers are all equal; set greedy: false, or samples: 1")
        return self


class SampleJob(GenerationJob):
    """Keeps a model's best answers as data for another job: best-of-n, rejection sampling, pairs (RUN/kept.jsonl)."""

    job: Literal["sample"] = "sample"
    samples: int = Field(8, ge=1, description="Answers to each prompt.")
    keep: Literal["best", "all", "pairs"] = Field(
        "best",
        description="For each prompt: the best answer, all answers, or best and worst as a pair if their "
        "rewards differ.",
    )
    above: float | None = Field(
        None, description="Keep only answers with a higher reward than this; of a pair, the chosen answer."
    )

    @model_validator(mode="after")
    def _pairs_need_two(self) -> SampleJob:
        if self.keep == "pairs" and self.samples < 2:
            raise ValueError("keep: pairs compares the answers to a prompt; set samples to 2 or more")
        return self


class ScoreJob(Section):
    """Scores the texts of a dataset with reward terms; no model answers (RUN/scored.jsonl)."""

    job: Literal["score"] = "score"
    run: RunConfig = Field(default_factory=RunConfig, description="Run directory and seed.")
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="Ray cluster and devices.")
    log: LogConfig = Field(default_factory=LogConfig, description="Where metrics go.")
    data: DataConfig = Field(..., description="Rows with `text`, or with `prompt` and `completion`.")
    rewards: RewardsConfig = Field(
        ..., description="Terms that score each text: rules, your functions, models, classifiers."
    )

    @model_validator(mode="after")
    def _whole_texts(self) -> ScoreJob:
        steps = [t.name for t in self.rewards.terms if isinstance(t, ModelReward) and t.steps is not None]
        if steps:
            raise ValueError(
                f"rewards.terms: '{steps[0]}' rewards the steps of an answer, but a text has one score; "
                "remove its steps"
            )
        return self


class TokenizerJob(Section):
    """Trains a tokenizer on a corpus; a later stage uses it with `model.tokenizer: stage:NAME`."""

    job: Literal["tokenizer"] = "tokenizer"
    run: RunConfig = Field(default_factory=RunConfig, description="Run directory and seed.")
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="Ray cluster and devices.")
    log: LogConfig = Field(default_factory=LogConfig, description="Where metrics go.")
    data: DataConfig = Field(..., description="Texts to train the tokenizer on.")
    texts: list[str] = Field(default_factory=list, description="Columns to read; none named: all columns with text.")
    algorithm: Literal["bpe", "wordpiece"] = Field("bpe", description="Byte-level BPE, or WordPiece (BERT's).")
    vocab_size: int = Field(8192, ge=300, description="Tokens in the vocabulary, with the special ones.")
    lowercase: bool = Field(False, description="Convert all letters to lower case.")
