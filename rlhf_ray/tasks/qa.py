"""Extractive question answering: the span of a context that answers a question, or none."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..algorithms import losses
from ..batch import Batch
from ..config import QAJob
from ..data.encode import NO_WORD, encode_text
from ..data.examples import DataError, Rows
from ..data.prepared import Example, Prepared, prepare_rows
from ..learner.objectives import Columns, Loss, PerRow
from ..quality import intervals
from ..quality.text import exact_match, token_f1
from .base import Judge, Task, TaskKind, prepare_data


@dataclass(frozen=True)
class SpanObjective(PerRow):
    """Cross-entropy of a span's first and last token over the context's tokens, averaged over the two.

    Devlin et al. 2018, arXiv 1810.04805, sections 4.2 and 4.3. labels (B, 2) are positions in the sequence; position 0
    means that there is no answer.
    """

    max_answer_tokens: int

    def loss(self, model: Any, batch: Batch, device: torch.device) -> Loss:
        """Summed over rows."""
        c = Columns(batch, device)
        by_row = self._log_probs(model, c)
        ends = c.labels.long()
        loss = torch.stack([-(row.gather(0, e[None]).mean()) for row, e in zip(by_row, ends, strict=True)])
        exact = torch.stack([(row.argmax(0) == e).all() for row, e in zip(by_row, ends, strict=True)])
        ones = torch.ones_like(loss)
        return loss.sum(), {"loss/span": losses.metric(loss, ones), "span/exact": losses.metric(exact, ones)}

    def predict(self, model: Any, batch: Batch, device: torch.device) -> list[np.ndarray]:
        """(3,) of each sequence: the best span's first and last position, and its score minus the score of no answer."""
        spans = []
        for row in self._log_probs(model, Columns(batch, device)):
            start, end = row[:, 0], row[:, 1]
            scores = start[:, None] + end[None, :]  # (length, length)
            position = torch.arange(len(row), device=device)
            distance = position[None, :] - position[:, None]
            scores[(distance < 0) | (distance >= self.max_answer_tokens)] = -torch.inf
            scores[0, :] = -torch.inf
            best = int(scores.argmax())
            score = float(scores.flatten()[best] - start[0] - end[0])
            spans.append(np.array([best // len(row), best % len(row), score]))
        return spans

    def _log_probs(self, model: Any, c: Columns) -> list[Tensor]:
        """(length, 2) of each sequence: that a span begins, or ends, at each token. Only the context and position 0 can."""
        first = torch.cumsum(c.lengths, 0) - c.lengths
        allowed = c.response_mask.bool().index_fill(0, first, True)
        logits = model(c.tokens, c.lengths, c.prompt_length).masked_fill(~allowed[:, None], -torch.inf)
        return [row.log_softmax(0) for row in logits.split(c.lengths.tolist())]


@dataclass(frozen=True)
class Window:
    """A question with a part of its context, and for each token (length, 2) the characters of the context it covers."""

    example: Example
    characters: np.ndarray


def windows(rows: Rows, index: int, tokenizer: Any, max_length: int, stride: int) -> list[Window]:
    """The windows of a row: columns question, context, and SQuAD's answers {text: [...], answer_start: [...]}.

    A context that is too long comes in windows that overlap by ``stride`` tokens. labels (2,) are the first and last
    token of the first answer, or 0, 0 in a window without it, and if there is no answer. response_mask marks the context.

        max_length 10, question of 3 tokens, context of 9 tokens, [SEP] at the end, stride 2: windows of 6 tokens
        context  0 1 2 3 4 5 6 7 8
        window 1 0 1 2 3 4 5
        window 2         4 5 6 7 8

    Raises DataError for an answer that is not where it says in the context.
    """
    rows.require(index, "question", "context", "answers")
    place = rows.place(index)
    question, context = rows.text(index, "question"), rows.text(index, "context")
    answer = answer_span(rows[index]["answers"], context, place)
    text = encode_text(tokenizer, question, context)
    head = text.ids[: text.second]
    tail = text.ids[-1:] if text.words[-1] == NO_WORD else []
    body = text.ids[text.second : len(text.ids) - len(tail)]
    body_characters = text.characters[text.second : text.second + len(body)]
    size = max_length - len(head) - len(tail)
    if size <= stride:
        raise DataError(f"{place}: the question has {len(head)} tokens, which leaves {size} of max_length; raise it")
    windows_of_row = []
    for start in range(0, max(1, len(body) - stride), size - stride):
        characters = body_characters[start : start + size]
        example = Example(
            tokens=[*head, *body[start : start + size], *tail],
            mask=[0] * len(head) + [1] * len(characters) + [0] * len(tail),
            prompt_length=len(head),
            columns={"labels": _answer_tokens(answer, characters, len(head))},
        )
        around = np.full((len(head), 2), -1), np.full((len(tail), 2), -1)
        windows_of_row.append(Window(example, np.concatenate([around[0], characters, around[1]])))
    return windows_of_row


def answer_span(answers: Any, context: str, place: str) -> tuple[int, int] | None:
    """The characters [start, end) of the first answer; None if there is none."""
    if not isinstance(answers, dict) or not {"text", "answer_start"} <= set(answers):
        raise DataError(f"{place}: answers is {answers!r}, expected {{text: [...], answer_start: [...]}}")
    texts, starts = answers["text"], answers["answer_start"]
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        raise DataError(
            f"{place}: answers has text {texts!r} and answer_start {starts!r}, expected lists of one length"
        )
    if not texts:
        return None
    text, start = str(texts[0]), starts[0]
    if isinstance(start, bool) or not isinstance(start, int):
        raise DataError(f"{place}: answer_start is {start!r}, expected the number of a character")
    if context[start : start + len(text)] != text:
        raise DataError(
            f"{place}: the answer {text!r} is not at character {start} of its context, which has "
            f"{context[start : start + len(text)]!r} there"
        )
    return start, start + len(text)


def _answer_tokens(answer: tuple[int, int] | None, characters: np.ndarray, first: int) -> list[float]:
    """First and last token of the answer in a window whose context begins at token ``first``; 0, 0 if it is not in it."""
    if answer is None or not len(characters) or characters[0, 0] > answer[0] or characters[-1, 1] < answer[1]:
        return [0.0, 0.0]
    inside = np.flatnonzero((characters[:, 1] > answer[0]) & (characters[:, 0] < answer[1]))
    return [float(first + inside[0]), float(first + inside[-1])] if len(inside) else [0.0, 0.0]


def prepare(rows: Rows, tokenizer: Any, max_length: int, stride: int) -> Prepared:
    """The windows of all rows, each a group of its own."""

    def encode_row(rows: Rows, index: int) -> list[Example]:
        return [window.example for window in windows(rows, index, tokenizer, max_length, stride)]

    return prepare_rows(rows, encode_row, max_length)


def judge_answers(rows: Rows, tokenizer: Any, max_length: int, stride: int) -> Judge:
    """Exact match and F1 of held-out rows: of a question's windows the best span, or none if no window prefers a span."""
    by_window = [(i, w.characters) for i in range(len(rows)) for w in windows(rows, i, tokenizer, max_length, stride)]
    references = [list(row["answers"]["text"]) or [""] for row in rows]

    def judge(spans: list[np.ndarray]) -> dict[str, Any]:
        best: dict[int, tuple[float, str]] = defaultdict(lambda: (0.0, ""))
        for (index, characters), (start, end, score) in zip(by_window, spans, strict=True):
            if score > best[index][0]:
                first, last = characters[int(start)], characters[int(end)]
                best[index] = (float(score), rows[index]["context"][int(first[0]) : int(last[1])])
        pairs = [(best[i][1], reference) for i, reference in enumerate(references)]
        measures = {
            "exact_match": intervals.mean(np.array([exact_match(*pair) for pair in pairs])),
            "f1": intervals.mean(np.array([token_f1(*pair) for pair in pairs])),
        }
        return {name: e.mean for name, e in measures.items()} | {
            "intervals": {name: [e.low, e.high] for name, e in measures.items()}
        }

    return judge


def build(job: QAJob, rows: Rows, heldout: Rows | None, tokenizer: Any) -> Task:
    """Extractive question answering."""
    data = prepare_data(job, partial(prepare, stride=job.stride), rows, heldout, tokenizer)
    judge = None if heldout is None else judge_answers(heldout, tokenizer, job.max_length, job.stride)
    return Task(objective=SpanObjective(job.longest_answer), data=data, judge=judge)


QA = TaskKind(model="span", build=build)
