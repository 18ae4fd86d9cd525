"""Prompts for rollouts: token ids, the rows that rewards read, and how often each is drawn."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ..config import PromptConfig
from ..run.events import notice
from .context import check_prompt_context
from .encode import check_text, prompt_ids, side_ids
from .examples import DataError, Rows, load, to_table
from .sampler import EQUAL, Shares


@dataclass(frozen=True)
class Prompts:
    """A dataset of prompts."""

    tokens: list[np.ndarray]
    """Token ids (n,) int32 of each prompt."""
    rows: pa.Table
    """One row a prompt: example_id and the columns that rewards read."""
    example_id: np.ndarray
    """(prompts,) int64, ascending: the row of the dataset that each prompt is."""
    shares: Shares = EQUAL

    def __len__(self) -> int:
        return len(self.tokens)


def load_prompts(
    config: PromptConfig,
    tokenizer: Any,
    context: int,
    max_new_tokens: int,
    option: str,
    encoder_decoder: bool = False,
    columns: Collection[str] = ("prompt",),
) -> Prompts:
    """The prompts of the section ``option``. A notice says how many are left out because they are too long.

    ``context`` is the model's, in tokens. An ``encoder_decoder`` has one for the prompt and another for the answer.
    ``columns`` are those that the rewards name. Raises BadInput if prompt and answer can exceed the context, for rows that
    are no prompts, and for a named column whose values have several types.
    """
    check_prompt_context(option, config.max_prompt_tokens, max_new_tokens, context, encoder_decoder)
    rows = load(config, option)
    by_row = encode_prompts(rows, tokenizer, config.max_prompt_tokens, config.too_long, encoder_decoder)
    if len(by_row) < len(rows):
        limit = f"{option}.max_prompt_tokens {config.max_prompt_tokens}"
        notice(f"{option}: {len(rows) - len(by_row)} of {len(rows)} prompts are longer than {limit}, left out")
    indices = list(by_row)
    table = to_table(rows, indices, columns)
    return Prompts(list(by_row.values()), table, np.asarray(indices, np.int64), rows.shares)


def encode_prompts(
    rows: Rows, tokenizer: Any, max_tokens: int, too_long: str, encoder_decoder: bool = False
) -> dict[int, np.ndarray]:
    """Token ids (n,) int32 of column prompt, by the index of the row.

    A prompt of more than ``max_tokens`` is an error, dropped, or cut on the left, as ``too_long`` says. For an
    ``encoder_decoder`` prompts are texts, and get an end token. Raises DataError, also if none is left.
    """
    by_row = {}
    for index, row in enumerate(rows):
        place = rows.place(index)
        rows.require(index, "prompt")
        if encoder_decoder or isinstance(row["prompt"], str):
            check_text(row["prompt"], "prompt", place)
        ids = side_ids(row["prompt"], tokenizer) if encoder_decoder else prompt_ids(row["prompt"], tokenizer, place)
        if len(ids) > max_tokens and too_long == "error":
            raise DataError(
                f"{place}: the prompt has {len(ids)} tokens, more than {rows.option}.max_prompt_tokens {max_tokens}; "
                f"raise it, or set {rows.option}.too_long to drop or truncate_left"
            )
        if len(ids) <= max_tokens or too_long == "truncate_left":
            by_row[index] = np.array(ids[-max_tokens:], dtype=np.int32)
    if not by_row:
        raise DataError(
            f"{rows.source}: all {len(rows)} prompts are longer than {rows.option}.max_prompt_tokens {max_tokens}; raise it"
        )
    return by_row
