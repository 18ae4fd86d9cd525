"""From examples to Batches: language modelling, fine-tuning, preference pairs, labels, prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..batch import Batch, from_sequences
from .examples import DataError, Row, rendered, require, text_of


@dataclass(frozen=True)
class Prepared:
    """A Batch, and how many examples were left out because they are too long."""

    batch: Batch
    dropped: int


@dataclass(frozen=True)
class PreparedPrompts:
    """Token ids of the prompts that are kept, and their rows' indices."""

    tokens: list[np.ndarray]
    ids: list[int]
    dropped: int


def language_model(rows: Sequence[Row], tokenizer: Any, max_length: int) -> Prepared:
    """Column text, then the end token; the loss is taken on every token but the first. Longer texts are cut into pieces."""
    require(rows, ["text"], "data")
    eos = _eos(tokenizer)
    pieces, ids = [], []
    for i, row in enumerate(rows):
        whole = [*tokenizer(text_of(row, "text", f"data row {i + 1}"))["input_ids"], eos]
        for start in range(0, len(whole), max_length):
            piece = whole[start : start + max_length]
            if len(piece) > 1:
                pieces.append(piece)
                ids.append(i)
    masks = [[0] + [1] * (len(p) - 1) for p in pieces]
    return Prepared(_batch(pieces, masks, ids, np.arange(len(ids))), 0)


def supervised(rows: Sequence[Row], tokenizer: Any, max_length: int) -> Prepared:
    """Prompt, completion, end token; the loss is taken on completion and end token. ``messages`` end with the assistant's."""
    sequences, masks, ids = [], [], []
    for i, row in enumerate(rows):
        where = f"data row {i + 1}"
        if "messages" in row:
            row = {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}
        require([row], ["prompt", "completion"], where)
        prompt, completion = _sides(row, "completion", tokenizer, where)
        if len(prompt) + len(completion) <= max_length:
            sequences.append(prompt + completion)
            masks.append([0] * len(prompt) + [1] * len(completion))
            ids.append(i)
    return Prepared(_batch(sequences, masks, ids, np.arange(len(ids))), len(rows) - len(ids))


def pairs(rows: Sequence[Row], tokenizer: Any, max_length: int) -> Prepared:
    """Two rows a pair, chosen (labels 1) then rejected (0), both ending in the end token. A pair is never cut, but dropped."""
    require(rows, ["prompt", "chosen", "rejected"], "data")
    sequences, masks, ids = [], [], []
    for i, row in enumerate(rows):
        both = [_sides(row, side, tokenizer, f"data row {i + 1}") for side in ("chosen", "rejected")]
        if max(len(p) + len(c) for p, c in both) <= max_length:
            sequences += [p + c for p, c in both]
            masks += [[0] * len(p) + [1] * len(c) for p, c in both]
            ids += [i, i]
    labels = np.tile(np.array([[1.0], [0.0]], np.float32), (len(ids) // 2, 1))
    return Prepared(
        _batch(sequences, masks, ids, np.repeat(np.arange(len(ids) // 2), 2), labels), len(rows) - len(ids) // 2
    )


def labelled(rows: Sequence[Row], tokenizer: Any, max_length: int) -> Prepared:
    """Column text (or sentence), end token, and label 0 or 1."""
    sequences, labels, ids = [], [], []
    for i, row in enumerate(rows):
        where = f"data row {i + 1}"
        column = "text" if "text" in row else "sentence"
        require([row], [column, "label"], where)
        if str(row["label"]) not in ("0", "1"):
            raise DataError(f"{where}: label is {row['label']!r}, expected 0 or 1")
        whole = [*tokenizer(text_of(row, column, where))["input_ids"], _eos(tokenizer)]
        if len(whole) <= max_length:
            sequences.append(whole)
            labels.append([float(row["label"])])
            ids.append(i)
    masks = [[0] + [1] * (len(s) - 1) for s in sequences]
    return Prepared(
        _batch(sequences, masks, ids, np.arange(len(ids)), np.array(labels, np.float32)), len(rows) - len(ids)
    )


def prompts(rows: Sequence[Row], tokenizer: Any, max_length: int, too_long: str) -> PreparedPrompts:
    """Token ids of column prompt; longer ones than ``max_length`` are an error, dropped, or cut on the left."""
    require(rows, ["prompt"], "data")
    tokens, ids = [], []
    for i, row in enumerate(rows):
        where = f"data row {i + 1}"
        ids_of = tokenizer(rendered(_filled(row["prompt"], where), tokenizer, where, prompt=True))["input_ids"]
        if len(ids_of) > max_length and too_long == "error":
            raise DataError(
                f"{where}: the prompt has {len(ids_of)} tokens, more than max_prompt_tokens {max_length}; "
                "raise it, or set data.too_long to drop or truncate_left"
            )
        if len(ids_of) <= max_length or too_long == "truncate_left":
            tokens.append(np.array(ids_of[-max_length:], dtype=np.int32))
            ids.append(i)
    if not tokens:
        raise DataError(f"data: all {len(rows)} prompts are longer than max_prompt_tokens {max_length}")
    return PreparedPrompts(tokens, ids, len(rows) - len(ids))


def _filled(prompt: Any, where: str) -> Any:
    return text_of({"prompt": prompt}, "prompt", where) if isinstance(prompt, str) else prompt


def _sides(row: Row, column: str, tokenizer: Any, where: str) -> tuple[list[int], list[int]]:
    """Prompt ids, and completion ids with the end token. A conversation is rendered whole and cut where the prompt ends."""
    prompt, answer = row["prompt"], row[column]
    head = rendered(prompt, tokenizer, f"{where}, prompt", prompt=True)
    if isinstance(answer, list):
        whole = rendered([*prompt, *answer], tokenizer, f"{where}, {column}", prompt=False)
        tail = whole.removeprefix(head)
    else:
        tail = text_of(row, column, where)
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    eos = _eos(tokenizer)
    return tokenizer(head)["input_ids"], ids if ids and ids[-1] == eos else [*ids, eos]


def _eos(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise DataError(
            "the tokenizer has no eos_token, so no sequence could end; set eos_token in its tokenizer_config.json"
        )
    return int(tokenizer.eos_token_id)


def _batch(
    sequences: list[list[int]], masks: list[list[int]], ids: list[int], group: np.ndarray, labels: Any = None
) -> Batch:
    if not sequences:
        raise DataError("data: every example is longer than max_length; raise it")
    extra = {} if labels is None else {"labels": labels}
    arrays = [np.array(s, dtype=np.int32) for s in sequences]
    return from_sequences(
        arrays, response_mask=[np.array(m) for m in masks], group=group, example_id=np.array(ids), **extra
    )
