"""Tagging of words (token classification), measured by accuracy and F1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..config import TagJob
from ..data.encode import encode_text
from ..data.examples import DataError, Rows
from ..data.prepared import Example, Prepared, prepare_rows
from ..quality.classes import classification
from .base import Judge, Task, TaskData, TaskKind, prepare_data
from .masked import TokenObjective


def labels_of(job: TagJob, rows: Rows) -> tuple[str, ...]:
    """The tags: those of the config, else the different tags of the rows, sorted."""
    if job.labels:
        return tuple(job.labels)
    return tuple(sorted({str(tag) for row in rows for tag in row.get("tags") or ()}))


def prepare(rows: Rows, tokenizer: Any, max_length: int, labels: Sequence[str]) -> Prepared:
    """Columns words and tags, lists of one length. A tag is learnt at the first token of its word (response_mask, targets).

    Raises DataError for lists of different length and for a tag that is none of ``labels``.
    """
    class_of = {name: i for i, name in enumerate(labels)}

    def encode_row(rows: Rows, index: int) -> list[Example]:
        rows.require(index, "words", "tags")
        place = rows.place(index)
        words, tags = [str(w) for w in rows[index]["words"]], [str(t) for t in rows[index]["tags"]]
        if len(words) != len(tags) or not words:
            raise DataError(f"{place}: {len(words)} words and {len(tags)} tags; each word needs one")
        unknown = next((tag for tag in tags if tag not in class_of), None)
        if unknown is not None:
            raise DataError(f"{place}: tag is {unknown!r}, expected one of {', '.join(labels)}")
        text = encode_text(tokenizer, " ".join(words))
        starts = np.cumsum([0, *(len(word) + 1 for word in words)])[:-1]  # characters
        first_tokens = [int(np.argmax(text.characters[:, 1] > start)) for start in starts]
        class_at = {token: class_of[tag] for token, tag in zip(first_tokens, tags, strict=True)}
        ids = text.ids[:max_length]
        positions = range(len(ids))
        targets = [class_at.get(i, 0) for i in positions]
        mask = [int(i in class_at) for i in positions]
        return [Example(tokens=ids, mask=mask, prompt_length=0, columns={"targets": targets})]

    return prepare_rows(rows, encode_row, max_length)


def judge_tags(labels: Sequence[str], data: TaskData) -> Judge | None:
    """Accuracy and F1 of the predicted classes of held-out rows."""
    if data.heldout is None:
        return None
    truth = [labels[t] for t in data.heldout.targets[data.heldout.response_mask.astype(bool)]]
    return lambda predictions: classification(truth, [labels[i] for i in np.concatenate(predictions)], labels)


def build(job: TagJob, rows: Rows, heldout: Rows | None, tokenizer: Any) -> Task:
    """A classifier of words."""
    labels = labels_of(job, rows)

    def prepare_words(rows: Rows, tokenizer: Any, max_length: int) -> Prepared:
        return prepare(rows, tokenizer, max_length, labels)

    data = prepare_data(job, prepare_words, rows, heldout, tokenizer)
    return Task(objective=TokenObjective("tags"), data=data, judge=judge_tags(labels, data))


TAG = TaskKind(model="tags", build=build, labels=labels_of)
