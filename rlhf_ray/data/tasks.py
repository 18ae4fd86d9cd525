"""From examples to Batches for encoders and task heads: masked text, classes, tags, spans of a context.

Sequences begin and end as the tokenizer has it ([CLS] and [SEP], <s> and </s>), or, where it adds nothing, with the beginning
token, if there is one, and the end token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..batch import Array, Batch, from_sequences
from .batches import NothingFits, Prepared
from .examples import DataError, Rows, text_of

FREE = -1  # the word of a token that belongs to none: special tokens


@dataclass(frozen=True)
class Encoded:
    """Token ids of a text (or two), the word each belongs to (or FREE), and characters (n, 2) of the text that it covers."""

    ids: list[int]
    words: list[int]
    second: int
    characters: np.ndarray


def encode(tokenizer: Any, *texts: str) -> Encoded:
    """One text or two, with special tokens around them; ``second`` is where the second begins (of one: its length)."""
    found = tokenizer(*texts, return_offsets_mapping=True)
    ids, offsets = list(found["input_ids"]), list(found["offset_mapping"])
    words = [FREE if w is None else w for w in found.word_ids()]
    parts = found.sequence_ids()
    if FREE not in words:
        begin, end = tokenizer.cls_token_id, tokenizer.sep_token_id
        begin = tokenizer.bos_token_id if begin is None else begin
        end = tokenizer.eos_token_id if end is None else end
        cut = parts.index(1) if 1 in parts else len(ids)
        edges = [[begin] if begin is not None else [], [end]]
        middle = edges[1] if len(texts) == 2 else []
        ids = [*edges[0], *ids[:cut], *middle, *ids[cut:], *edges[1]]
        words = [*[FREE] * len(edges[0]), *words[:cut], *[FREE] * len(middle), *words[cut:], FREE]
        offsets = [*[(0, 0)] * len(edges[0]), *offsets[:cut], *[(0, 0)] * len(middle), *offsets[cut:], (0, 0)]
        parts = [*[None] * len(edges[0]), *parts[:cut], *[None] * len(middle), *parts[cut:], None]
    second = parts.index(1) if 1 in parts else len(ids)
    return Encoded(ids, words, second, np.array(offsets).reshape(-1, 2))


def masked_text(rows: Rows, tokenizer: Any, max_length: int) -> Prepared:
    """Column text in pieces of at most ``max_length`` tokens; response_mask marks the tokens that may be masked, words their words."""
    pieces, words, ids = [], [], []
    for i, row in enumerate(rows):
        rows.require(i, "text")
        whole = encode(tokenizer, text_of(row, "text", rows.place(i)))
        for start in range(0, len(whole.ids), max_length):
            part = slice(start, start + max_length)
            if any(w != FREE for w in whole.words[part]):
                pieces.append(np.array(whole.ids[part]))
                words.append(np.array(whole.words[part]))
                ids.append(i)
    if not pieces:
        raise NothingFits(f"{rows.source}: no text has a word to be predicted")
    made = from_sequences(
        pieces, words=words, response_mask=[w != FREE for w in words], example_id=np.array(ids), group=np.arange(len(ids)),
        prompt_length=np.zeros(len(ids)),
    )  # fmt: skip
    return Prepared(made, 0)


def mask(
    batch: Batch, seed: Sequence[int], probability: float, whole_words: bool, mask_id: int, vocab_size: int
) -> Batch:
    """BERT's masks (Devlin et al. 2018, arXiv 1810.04805): of the tokens that may be masked a share is chosen, and of those
    80 % become the mask token, 10 % a random one, 10 % stay; all are to be predicted (targets, response_mask).

    ``whole_words`` chooses words and masks all their tokens. Every sequence has at least one. ``seed`` alone decides.
    """
    draw = np.random.default_rng(list(seed))
    row = np.repeat(np.arange(len(batch)), batch.lengths)
    unit = (
        np.arange(len(row))
        if not whole_words
        else np.unique(np.stack([row, batch.words], 1), axis=0, return_inverse=True)[1]
    )
    unit = unit.reshape(-1)
    free = batch.response_mask == 0
    share = draw.random(unit.max() + 1)[unit]
    share[free] = 2.0
    least = np.minimum.reduceat(share, batch.offsets[:-1])[row]
    chosen = (share < probability) | ((share == least) & ~free)
    kind, other = draw.random(len(row)), draw.integers(0, vocab_size, len(row))
    tokens = np.where(chosen & (kind < 0.8), mask_id, batch.tokens)
    tokens = np.where(chosen & (kind >= 0.9), other, tokens)
    return batch.replace(tokens=tokens, targets=batch.tokens, response_mask=chosen)


def classified(rows: Rows, tokenizer: Any, max_length: int, labels: Sequence[str]) -> Batch:
    """Column text (or sentence) and label, one of ``labels``; a longer text is cut at the end, its last token kept.

    Raises DataError for a label that is none of them.
    """
    place = {name: i for i, name in enumerate(labels)}
    sequences, classes = [], []
    for i, row in enumerate(rows):
        column = "text" if "text" in row else "sentence"
        rows.require(i, column, "label")
        if str(row["label"]) not in place:
            raise DataError(f"{rows.place(i)}: label is {row['label']!r}, expected one of {', '.join(labels)}")
        whole = encode(tokenizer, text_of(row, column, rows.place(i))).ids
        sequences.append(np.array(whole if len(whole) <= max_length else [*whole[: max_length - 1], whole[-1]]))
        classes.append([float(place[str(row["label"])])])
    return _plain(sequences, np.array(classes, np.float32))


def labels_of(rows: Rows) -> tuple[str, ...]:
    """The different labels of the rows, sorted. Raises DataError where there are fewer than two."""
    for i in range(len(rows)):
        rows.require(i, "label")
    found = tuple(sorted({str(row["label"]) for row in rows}))
    if len(found) < 2:
        raise DataError(f"{rows.source}: every label is {found[0]!r}; a classifier needs two classes or more")
    return found


def tagged(rows: Rows, tokenizer: Any, max_length: int, labels: Sequence[str]) -> Batch:
    """Columns words and tags, lists of one length: a tag is learnt at the first token of its word.

    Raises DataError for lists of different length and for a tag that is none of ``labels``.
    """
    place = {name: i for i, name in enumerate(labels)}
    sequences, targets, marks = [], [], []
    for i, row in enumerate(rows):
        rows.require(i, "words", "tags")
        words, tags = list(row["words"]), [str(t) for t in row["tags"]]
        if len(words) != len(tags) or not words:
            raise DataError(f"{rows.place(i)}: {len(words)} words and {len(tags)} tags; each word needs one")
        wrong = next((t for t in tags if t not in place), None)
        if wrong is not None:
            raise DataError(f"{rows.place(i)}: tag is {wrong!r}, expected one of {', '.join(labels)}")
        starts = np.cumsum([0, *(len(str(w)) + 1 for w in words)])[:-1]
        whole = encode(tokenizer, " ".join(map(str, words)))
        begins = {
            int(np.argmax(whole.characters[:, 1] > start)): place[t] for start, t in zip(starts, tags, strict=True)
        }
        kept = min(len(whole.ids), max_length)
        sequences.append(np.array(whole.ids[:kept]))
        targets.append(np.array([begins.get(j, 0) for j in range(kept)]))
        marks.append(np.array([int(j in begins) for j in range(kept)]))
    made = _plain(sequences, None)
    return made.replace(targets=np.concatenate(targets), response_mask=np.concatenate(marks))


@dataclass(frozen=True)
class Windows:
    """A Batch of question and part of its context, and for each row the context's characters (length, 2) of every token."""

    batch: Batch
    characters: list[np.ndarray]


def answered(rows: Rows, tokenizer: Any, max_length: int, stride: int) -> Windows:
    """Columns question, context and answers (SQuAD's: {text: [...], answer_start: [...]}; empty: there is none).

    A context that is too long comes in windows that overlap by ``stride`` tokens; labels (B, 2) are the first and last token of the
    first answer, or 0, 0 in a window without it. Raises DataError for an answer that is not where it says in the context.
    """
    sequences, labels, marks, seconds, ids, characters = [], [], [], [], [], []
    for i, row in enumerate(rows):
        rows.require(i, "question", "context", "answers")
        question, context = (text_of(row, c, rows.place(i)) for c in ("question", "context"))
        span = _span(row["answers"], context, rows.place(i))
        whole = encode(tokenizer, question, context)
        head, tail = (
            whole.ids[: whole.second],
            [t for t, w in zip(whole.ids[-1:], whole.words[-1:], strict=True) if w == FREE],
        )
        body = whole.ids[whole.second : len(whole.ids) - len(tail)]
        places = whole.characters[whole.second : whole.second + len(body)]
        room = max_length - len(head) - len(tail)
        if room <= stride:
            raise DataError(
                f"{rows.place(i)}: the question has {len(head)} tokens, which leaves {room} of max_length; raise it"
            )
        for start in range(0, max(1, len(body) - stride), room - stride):
            part = places[start : start + room]
            sequences.append(np.array([*head, *body[start : start + room], *tail]))
            marks.append(np.r_[np.zeros(len(head)), np.ones(len(part)), np.zeros(len(tail))])
            seconds.append(len(head))
            ids.append(i)
            empty = np.full((len(head), 2), -1), np.full((len(tail), 2), -1)
            characters.append(np.concatenate([empty[0], part, empty[1]]))
            labels.append(_tokens(span, part, len(head)))
    made = _plain(sequences, np.array(labels, np.float32)).replace(
        response_mask=np.concatenate(marks), prompt_length=np.array(seconds), example_id=np.array(ids)
    )
    return Windows(made, characters)


def _span(answers: Any, context: str, where: str) -> tuple[int, int] | None:
    """First character and end of the first answer; None where there is none."""
    if not isinstance(answers, dict) or not {"text", "answer_start"} <= set(answers):
        raise DataError(f"{where}: answers is {answers!r}, expected {{text: [...], answer_start: [...]}}")
    texts, starts = answers["text"], answers["answer_start"]
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        raise DataError(
            f"{where}: answers has text {texts!r} and answer_start {starts!r}, expected lists of one length"
        )
    if not texts:
        return None
    text, start = str(texts[0]), starts[0]
    if isinstance(start, bool) or not isinstance(start, int):
        raise DataError(f"{where}: answer_start is {start!r}, expected the number of a character")
    if context[start : start + len(text)] != text:
        raise DataError(
            f"{where}: the answer {text!r} is not at character {start} of its context, which has "
            f"{context[start : start + len(text)]!r} there"
        )
    return start, start + len(text)


def _tokens(span: tuple[int, int] | None, characters: np.ndarray, first: int) -> list[int]:
    if span is None or not len(characters) or characters[0, 0] > span[0] or characters[-1, 1] < span[1]:
        return [0, 0]
    inside = np.flatnonzero((characters[:, 1] > span[0]) & (characters[:, 0] < span[1]))
    return [first + int(inside[0]), first + int(inside[-1])] if len(inside) else [0, 0]


def _plain(sequences: Sequence[Array], labels: Array | None) -> Batch:
    """A Batch with a group for each sequence; the loss is on none of its tokens."""
    number = np.arange(len(sequences))
    more = {} if labels is None else {"labels": labels}
    return from_sequences(
        sequences, response_mask=[np.zeros(len(s)) for s in sequences], prompt_length=np.zeros(len(number)),
        group=number, example_id=number, **more,
    )  # fmt: skip
