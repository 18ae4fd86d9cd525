"""From rows to a Batch: the loop that all supervised tasks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..batch import Batch, from_sequences
from .examples import DataError, Rows
from .sampler import Shares


class NothingFits(DataError):
    """No example is left."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The Batch of a dataset."""

    batch: Batch
    num_rows: int
    num_dropped: int
    """Rows that are left out because they are longer than max_length."""
    shares: Shares


@dataclass(frozen=True, kw_only=True)
class Example:
    """One sequence of a Batch."""

    tokens: Sequence[int]
    mask: Sequence[int]
    """response_mask, as long as ``tokens``."""
    prompt_length: int | None = None
    """None: the tokens before the first 1 in ``mask``."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Other columns of the Batch: of a token, as long as ``tokens``; of a sequence, one value or a list."""

    @staticmethod
    def of_answer(prompt: list[int], answer: list[int], **columns: Any) -> Example:
        """A prompt with its answer. The loss is on the answer's tokens."""
        return Example(tokens=prompt + answer, mask=[0] * len(prompt) + [1] * len(answer), columns=columns)

    @staticmethod
    def of_text(tokens: list[int], **columns: Any) -> Example:
        """A text of its own. The loss is on every token but the first."""
        return Example(tokens=tokens, mask=[0] + [1] * (len(tokens) - 1), columns=columns)

    @staticmethod
    def without_loss(tokens: list[int], **columns: Any) -> Example:
        """A text that is read as a whole. The loss is on none of its tokens."""
        return Example(tokens=tokens, mask=[0] * len(tokens), prompt_length=0, columns=columns)

    @property
    def leading(self) -> int:
        """prompt_length of the Batch."""
        if self.prompt_length is not None:
            return self.prompt_length
        return list(self.mask).index(1) if 1 in self.mask else len(self.mask)


EncodeRow = Callable[[Rows, int], list[Example] | None]
"""The sequences of a row, by its index; None if it is too long. Raises DataError if the row cannot be used."""
RowExamples = list[tuple[int, list[Example]]]
"""The index of a row, and its sequences."""
TOO_LONG = "every example is longer than max_length; raise it"


def prepare_rows(
    rows: Rows, encode_row: EncodeRow, max_length: int, *, together: bool = False, if_empty: str = TOO_LONG
) -> Prepared:
    """The Batch of all rows. A row with a sequence that is longer than ``max_length`` is left out as a whole.

    ``together``: the sequences of a row are one group; otherwise each has its own. Raises NothingFits with the sentence
    ``if_empty`` if nothing is left.
    """
    return to_prepared(rows, fitting_rows(rows, encode_row, max_length), together=together, if_empty=if_empty)


def fitting_rows(rows: Rows, encode_row: EncodeRow, max_length: int) -> RowExamples:
    """The rows whose sequences all have at most ``max_length`` tokens."""
    kept = []
    for index in range(len(rows)):
        examples = encode_row(rows, index)
        if examples is not None and all(len(example.tokens) <= max_length for example in examples):
            kept.append((index, examples))
    return kept


def to_prepared(rows: Rows, kept: RowExamples, *, together: bool = False, if_empty: str = TOO_LONG) -> Prepared:
    """The Batch of the rows that are ``kept``; see :func:`prepare_rows`."""
    examples = [example for _, of_row in kept for example in of_row]
    if not examples:
        raise NothingFits(f"{rows.source}: {if_empty}")
    counts = [len(of_row) for _, of_row in kept]
    batch = from_sequences(
        [np.asarray(e.tokens, np.int32) for e in examples],
        response_mask=[np.asarray(e.mask) for e in examples],
        prompt_length=np.array([e.leading for e in examples]),
        group=np.repeat(np.arange(len(kept)), counts) if together else np.arange(len(examples)),
        example_id=np.repeat([index for index, _ in kept], counts),
        **{name: [e.columns[name] for e in examples] for name in examples[0].columns},
    )
    return Prepared(batch=batch, num_rows=len(rows), num_dropped=len(rows) - len(kept), shares=rows.shares)
