"""Options of the supervised jobs: one model, examples, and a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from .data import DataConfig, TrainingData
from .learner import LearnerConfig
from .model import ModelConfig
from .preferences import DPO, PreferenceConfig
from .run import CheckpointConfig, ClusterConfig, LogConfig, RunConfig
from .section import Section


class Common(Section):
    """What all jobs that train share."""

    run: RunConfig = Field(default_factory=RunConfig, description="Run directory and seed.")
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="Ray cluster and devices.")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="When checkpoints are written.")
    log: LogConfig = Field(default_factory=LogConfig, description="Where metrics go.")
    model: ModelConfig = Field(..., description="The model that is trained.")
    learner: LearnerConfig = Field(default_factory=LearnerConfig, description="The learner ranks and their optimizer.")
    num_steps: int = Field(..., ge=1, description="Steps: of the optimizer, or (ppo) of rollout and learning.")

    @model_validator(mode="after")
    def _muon_updates_whole_matrices(self) -> Self:
        if self.learner.optimizer == "muon" and (self.learner.zero_stage == 0 or self.model.lora is not None):
            raise ValueError(
                "learner.optimizer: muon updates whole matrices, at ZeRO 1 to 3; set learner.zero_stage to 1 or more, "
                "and train without model.lora, or take adamw"
            )
        return self


class EvaluateSupervised(Section):
    """Held-out examples."""

    every: int = Field(0, ge=0, description="Steps between evaluations; 0: only after the last step.")
    data: DataConfig | None = Field(None, description="Held-out examples; none: no evaluation.")
    best: str | None = Field(
        None,
        description="Held-out metric by which the exported model is chosen, with '-' before it if less is "
        "better; none: the last step's model.",
    )

    @model_validator(mode="after")
    def _best_needs_data(self) -> EvaluateSupervised:
        if self.best is not None and self.data is None:
            raise ValueError(f"best: '{self.best}' is measured on held-out examples, but evaluate.data is not set")
        return self


class Supervised(Common):
    """What the supervised jobs share."""

    if TYPE_CHECKING:
        job: str

    data: DataConfig = Field(..., description="Examples to train on.")
    evaluate: EvaluateSupervised = Field(default_factory=EvaluateSupervised, description="Held-out evaluation.")
    batch_size: int = Field(32, ge=1, description="Examples of one optimizer step; a pair counts as one.")
    max_length: int = Field(512, ge=2, description="Longest sequence, in tokens.")

    @property
    def task(self) -> str:
        """The job's row in the table of tasks: its name and, if it has several objectives, the objective."""
        return self.job

    @model_validator(mode="after")
    def _fits(self) -> Supervised:
        if self.max_length > self.learner.micro_batch_tokens:
            raise ValueError(
                f"learner.micro_batch_tokens = {self.learner.micro_batch_tokens} is less than "
                f"max_length = {self.max_length}"
            )
        if self.batch_size < self.learner.num_workers:
            raise ValueError(
                f"batch_size = {self.batch_size} is less than learner.num_workers = {self.learner.num_workers}"
            )
        return self


class MaskConfig(Section):
    """BERT's masks (Devlin et al., 2018), drawn again each time a text is used."""

    probability: float = Field(0.15, gt=0, lt=1, description="Share of the tokens that the model must predict.")
    whole_words: bool = Field(False, description="Mask all tokens of a word together.")


class PretrainJob(Supervised):
    """Language modelling on the column `text`."""

    job: Literal["pretrain"] = "pretrain"
    data: TrainingData = Field(..., description="Examples to train on.")
    objective: Literal["causal", "masked"] = Field("causal", description="Predict the next token, or masked ones.")
    mask: MaskConfig = Field(default_factory=MaskConfig, description="What is masked; only objective: masked uses it.")

    @property
    def task(self) -> str:
        """The task of the objective."""
        return f"{self.job}_{self.objective}"


class SFTJob(Supervised):
    """Supervised fine-tuning on `prompt`, `completion` (or `messages`)."""

    job: Literal["sft"] = "sft"
    data: TrainingData = Field(..., description="Examples to train on.")
    neftune_alpha: float = Field(
        0.0, ge=0, description="Scale of the noise on embeddings in training (NEFTune); 5 is usual, 0 adds none."
    )


class RewardJob(Supervised):
    """A reward model, from columns that depend on the objective.

    Pairs: `prompt`, `chosen`, `rejected`. Labels: `text`, `label`. Scores: `text`, `score`. Steps of reasoning with a
    label each: `prompt`, `completions`, `labels`.
    """

    job: Literal["reward"] = "reward"
    data: TrainingData = Field(..., description="Examples to train on.")
    objective: Literal["pairwise", "labelled", "scores", "steps"] = Field(
        "pairwise",
        description="Bradley-Terry on pairs, cross-entropy on labels 0 and 1, squared error on scores, or "
        "cross-entropy at the end of each step.",
    )
    centre_coef: float = Field(
        0.0, ge=0, description="Weight of the squared sum of a pair's scores, which keeps rewards around 0."
    )
    separator: str = Field("\n", min_length=1, description="Text that ends a step; only objective: steps uses it.")

    @property
    def task(self) -> str:
        """The task of the objective."""
        return f"{self.job}_{self.objective}"


class PreferenceJob(Supervised):
    """Preference optimisation without sampling.

    Columns: `prompt`, `chosen`, `rejected`; for kto `prompt`, `completion`, `label`.
    """

    default_variants: ClassVar[dict[str, str]] = {"objective": "dpo"}

    job: Literal["dpo"] = "dpo"
    objective: PreferenceConfig = Field(default_factory=DPO, description="The loss and its options.")

    @property
    def task(self) -> str:
        """The task of the objective: KTO learns from single answers, the others from pairs."""
        return f"{self.job}_{'kto' if self.objective.type == 'kto' else 'pairs'}"


class ILQLJob(Supervised):
    """Value heads from recorded answers with rewards (ILQL; Snell et al., 2022).

    Columns: `prompt`, `completion`, `reward`; for answers in steps `prompt`, `completions`, `rewards`.
    `rollout.engine.guide` samples with the heads.
    """

    job: Literal["ilql"] = "ilql"
    gamma: float = Field(0.99, gt=0, le=1, description="Discount of the next token's value.")
    expectile: float = Field(
        0.7,
        ge=0.5,
        lt=1,
        description="Expectile of V: 0.5 is the mean over the data's tokens, close to 1 the best token.",
    )
    conservative_coef: float = Field(
        0.1, ge=0, description="Weight of the term that lowers Q of tokens that are not in the data."
    )
    behaviour_coef: float = Field(
        1.0,
        ge=0,
        description="Weight of the language model's cross-entropy; 0 freezes the model and trains only the heads.",
    )
    target_rate: float = Field(
        0.005,
        gt=0,
        le=1,
        description="Share by which the target Q heads move to the Q heads in a step (Polyak averaging).",
    )

    @model_validator(mode="after")
    def _something_learns(self) -> ILQLJob:
        if self.model.lora is not None and self.behaviour_coef == 0:
            raise ValueError(
                "behaviour_coef: 0 freezes the language model, so model.lora would learn nothing; remove one of them"
            )
        return self


class AugmentConfig(Section):
    """Changed copies of the training texts (Wei & Zou, 2019): one with deleted words, the next with swapped words."""

    copies: int = Field(2, ge=1, description="Changed copies of each text, in addition to the text itself.")
    delete: float = Field(0.1, ge=0, lt=1, description="Chance that a word is deleted; 0: no such copies.")
    swap: float = Field(0.1, ge=0, lt=1, description="Swaps of two words, per word of the text; 0: no such copies.")

    @model_validator(mode="after")
    def _some(self) -> AugmentConfig:
        if not self.delete and not self.swap:
            raise ValueError("delete and swap are both 0, so copies would equal the text; raise one of them")
        return self


class ClassifyJob(Supervised):
    """A classifier of texts: `text` (or `sentence`) and `label`."""

    job: Literal["classify"] = "classify"
    labels: list[str] | None = Field(
        None, min_length=2, description="The classes, in the order of the head; none: those of the training data."
    )
    class_weights: Literal["none", "balanced", "effective"] = Field(
        "none", description="Weight of a class in the loss: 1, inverse frequency, or inverse effective number."
    )
    effective_beta: float = Field(
        0.999, gt=0, lt=1, description="Beta of the effective number of examples; only effective uses it."
    )
    gamma: float = Field(0.0, ge=0, description="Exponent of the focal loss (1 - p)^gamma; 0 is plain cross-entropy.")
    sampling: Literal["natural", "balanced"] = Field(
        "natural", description="Classes as frequent as in the data, or all equally frequent."
    )
    augment: AugmentConfig | None = Field(None, description="Changed copies of the training texts; none: no copies.")

    @model_validator(mode="after")
    def _one_says_how_often(self) -> ClassifyJob:
        if self.sampling == "balanced" and (self.data.mix or self.data.sampling is not None):
            raise ValueError(
                "sampling: balanced and data.mix or data.sampling both set how often an example is drawn; remove one"
            )
        return self


class TagJob(Supervised):
    """A classifier of words: lists `words` and `tags`."""

    job: Literal["tag"] = "tag"
    labels: list[str] | None = Field(
        None, min_length=2, description="The tags, in the order of the head; none: those of the training data."
    )


class QAJob(Supervised):
    """Extractive question answering: `question`, `context` and SQuAD's `answers`."""

    job: Literal["qa"] = "qa"
    stride: int = Field(64, ge=0, description="Tokens that two neighbouring windows of a long context share.")
    longest_answer: int = Field(30, ge=1, description="Longest answer, in tokens.")


class EvaluateTranslations(EvaluateSupervised):
    """Held-out pairs, of which the first are translated."""

    translated: int = Field(
        200, ge=0, description="How many of the first held-out rows are translated greedily for BLEU and chrF; 0: none."
    )
    longest: int | None = Field(None, ge=1, description="Longest translation, in tokens; none: max_length.")
    language: str | None = Field(
        None, description="Language of the translations, for BLEU's tokenizer: zh, ja or ko; none for other languages."
    )


class Seq2SeqJob(Supervised):
    """An encoder-decoder (T5, BART, Marian), for translation or summaries.

    Columns: `source`, `target`; or `prompt`, `completion`.
    """

    job: Literal["seq2seq"] = "seq2seq"
    evaluate: EvaluateTranslations = Field(default_factory=EvaluateTranslations, description="Held-out evaluation.")
    max_length: int = Field(256, ge=2, description="Longest source and longest target, each in tokens.")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the target probability that is spread over the whole vocabulary."
    )

    @model_validator(mode="after")
    def _both_sides_fit(self) -> Seq2SeqJob:
        if 2 * self.max_length > self.learner.micro_batch_tokens:
            raise ValueError(
                f"learner.micro_batch_tokens = {self.learner.micro_batch_tokens} is less than a source and a target of "
                f"max_length = {self.max_length}"
            )
        if (self.evaluate.longest or 0) > self.max_length:
            raise ValueError(f"evaluate.longest = {self.evaluate.longest} is more than max_length = {self.max_length}")
        return self
