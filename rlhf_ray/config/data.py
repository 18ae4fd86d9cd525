"""Options of data: files, columns, mixtures and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from .section import Section

Form = str | list[dict[Literal["role", "content"], str]]
"""A format string of a row's columns, or messages whose contents are such strings."""


class SamplingConfig(Section):
    """How often training draws a row: in proportion to exp(column / temperature), spread evenly over time."""

    by: str = Field(..., min_length=1, description="Column with a number, such as the score of job: score.")
    temperature: float = Field(1.0, gt=0, description="Lower values draw the rows with the highest numbers more often.")


class Source(Section):
    """Examples from a file or of the toy dataset."""

    path: str = Field(
        ...,
        min_length=1,
        description="A file (JSONL, JSON, SQuAD, Parquet, CSV, TSV, Arrow, lines of text), a saved HF dataset, "
        "'hf:NAME:SPLIT', 'toy:reviews/sft' or 'toy:reviews/sft:heldout'.",
    )
    split: Literal["train", "heldout"] = Field("train", description="Split of the toy dataset; a file has one split.")
    size: int | None = Field(
        None,
        ge=1,
        description="How many examples to generate, or to read from a file; none: all, of the toy dataset 1000.",
    )
    seed: int = Field(0, ge=0, description="Seed of the toy dataset's generator.")
    parallel: str | None = Field(
        None, description="A second text file; each line is the translation of the same line of path."
    )
    columns: dict[str, str] = Field(default_factory=dict, description="Renames columns: {'sentence': 'text'}.")
    formats: dict[str, Form] = Field(
        default_factory=dict,
        description="Makes columns from other columns: {'prompt': 'English: {source} German:'}; a list of "
        "role and content makes messages.",
    )
    above: dict[str, float] = Field(
        default_factory=dict, description="Keeps only rows with a higher number in a column: {'score': 0.5}."
    )
    sampling: SamplingConfig | None = Field(
        None, description="Draws rows more often by a number, in training; none: all equally often."
    )
    redact: list[Literal["email", "phone", "card", "iban", "ip", "key"]] = Field(
        default_factory=list, description="Kinds of personal data to replace by their name, and to count."
    )

    @model_validator(mode="after")
    def _only_toy_has_splits(self) -> Source:
        if not self.path.startswith("toy:") and (self.split != "train" or self.seed):
            raise ValueError(
                f"split and seed belong to 'toy:' data; give held-out rows of {self.path} a file of their own"
            )
        return self


class Part(Source):
    """A source of a mixture."""

    weight: float = Field(
        1.0, gt=0, description="Share of the training examples, relative to the weights of the other parts."
    )


class DataConfig(Source):
    """Examples from one source, or from several."""

    path: str = Field("", description=f"{Source.model_fields['path'].description} Required if there is no mix.")
    mix: list[Part] = Field(
        default_factory=list,
        description="Several sources, each a data section; a small one is repeated, shuffled again each time.",
    )

    @model_validator(mode="after")
    def _path_or_mix(self) -> DataConfig:
        if not self.mix and not self.path:
            raise ValueError("path is missing: a file, 'toy:TASK', or several of them as mix")
        fields = type(self).model_fields
        keys = [
            key
            for key in sorted(self.model_fields_set & set(Source.model_fields))
            if getattr(self, key) != fields[key].get_default(call_default_factory=True)
        ]
        if self.mix and keys:
            raise ValueError(f"{', '.join(keys)} next to mix belongs to no part; move it into the parts that need it")
        return self

    @property
    def streamed(self) -> bool:
        """Whether the rows are tokenised block by block into files, instead of held in memory."""
        return False

    @property
    def sources(self) -> Sequence[Source]:
        """The parts of the mixture, or the one source."""
        return self.mix or [self]


class TrainingData(DataConfig):
    """Examples, also more than memory can hold."""

    stream: bool = Field(
        False,
        description="Tokenise block by block into files of the run directory; set it for data that memory cannot hold.",
    )

    @property
    def streamed(self) -> bool:
        """See :attr:`DataConfig.streamed`."""
        return self.stream


class PromptConfig(DataConfig):
    """Prompts for rollouts."""

    max_prompt_tokens: int = Field(512, ge=1, description="Longest prompt, in tokens.")
    too_long: Literal["error", "drop", "truncate_left"] = Field(
        "error", description="A longer prompt stops the job, is dropped, or loses its first tokens."
    )
