"""Where examples come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from .section import Section

Form = str | list[dict[Literal["role", "content"], str]]
"""A format string of a row's columns, or messages whose contents are such strings."""


class SamplingConfig(Section):
    """How often a row is drawn for training: in proportion to exp(column / temperature), its epochs as even as that allows."""

    by: str = Field(..., min_length=1, description="Column with a number, such as the score of job: score.")
    temperature: float = Field(1.0, gt=0, description="The lower, the more the highest numbers are drawn.")


class Source(Section):
    """Examples from a file or of the toy dataset."""

    path: str = Field(
        ...,
        min_length=1,
        description="JSONL, JSON (SQuAD's too), Parquet, CSV, TSV, Arrow, text by lines, saved HF dataset, 'hf:NAME:SPLIT', "
        "'toy:reviews/sft' or 'toy:reviews/sft:heldout'.",
    )
    split: Literal["train", "heldout"] = Field("train", description="Split of the toy dataset; a file is one split.")
    size: int | None = Field(None, ge=1, description="How many examples to generate, or to keep of a file.")
    seed: int = Field(0, ge=0, description="Seed of the toy dataset's generator.")
    parallel: str | None = Field(None, description="A second text file, line by line the translation of path's.")
    columns: dict[str, str] = Field(default_factory=dict, description="Renames columns: {'sentence': 'text'}.")
    formats: dict[str, Form] = Field(
        default_factory=dict,
        description="Makes columns of others: {'prompt': 'English: {source} German:'}; a list of role and content makes messages.",
    )
    above: dict[str, float] = Field(
        default_factory=dict, description="Leaves out rows whose number in a column is not above this: {'score': 0.5}."
    )
    sampling: SamplingConfig | None = Field(
        None, description="In training, draws rows by a number; none: all equally often."
    )
    redact: list[Literal["email", "phone", "card", "iban", "ip", "key"]] = Field(
        default_factory=list, description="Personal data that is replaced by its kind, and counted."
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
        1.0, gt=0, description="Its share of the training examples, against the other parts' weights."
    )


class DataConfig(Source):
    """Examples from one source, or from several."""

    path: str = Field("", description=f"{Source.model_fields['path'].description} Required where there is no mix.")
    mix: list[Part] = Field(
        default_factory=list,
        description="Several sources, each as a data section; a small one is repeated, each of its epochs a shuffle.",
    )

    @model_validator(mode="after")
    def _path_or_mix(self) -> DataConfig:
        if not self.mix and not self.path:
            raise ValueError("path is missing: a file, 'toy:TASK', or several of them as mix")
        beside = sorted(self.model_fields_set & set(Source.model_fields)) if self.mix else []
        fields = type(self).model_fields
        own = [k for k in beside if getattr(self, k) != fields[k].get_default(call_default_factory=True)]
        if own:
            raise ValueError(f"{', '.join(own)} beside mix would belong to no part; give it to the parts that need it")
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
    """Examples that may be more than memory holds."""

    stream: bool = Field(
        False,
        description="Tokenise a block at a time into files of the run directory, so that memory does not grow with the data.",
    )

    @property
    def streamed(self) -> bool:
        """See :attr:`DataConfig.streamed`."""
        return self.stream


class PromptConfig(DataConfig):
    """Prompts for rollouts."""

    max_prompt_tokens: int = Field(512, ge=1, description="Longest prompt, in tokens.")
    too_long: Literal["error", "drop", "truncate_left"] = Field("error", description="What happens to a longer prompt.")
