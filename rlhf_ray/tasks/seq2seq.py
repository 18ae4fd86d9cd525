"""Encoder-decoders: translation and summaries, measured by BLEU and chrF."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..algorithms import losses
from ..batch import Batch
from ..config import Seq2SeqJob
from ..data.encode import side_ids
from ..data.examples import Rows
from ..data.prepared import Example, Prepared, prepare_rows
from ..learner.objectives import Columns, Loss, PerToken
from ..quality import text
from .base import Judge, Task, TaskData, TaskKind, prepare_data


@dataclass(frozen=True)
class Seq2SeqObjective(PerToken):
    """Cross-entropy of the target tokens (response_mask) given the source tokens before them (prompt_length).

    ``label_smoothing`` changes the loss, not the metrics. ``max_new_tokens`` is the longest translation of ``predict``.
    """

    label_smoothing: float = 0.0
    max_new_tokens: int = 128

    def loss(self, model: Any, batch: Batch, device: torch.device) -> Loss:
        """Summed over target tokens."""
        c = Columns(batch, device)
        logits = model(c.tokens, c.lengths, c.prompt_length)
        return losses.smoothed_cross_entropy(logits, c.tokens[c.response_mask.bool()], self.label_smoothing)

    def predict(self, model: Any, batch: Batch, device: torch.device) -> list[np.ndarray]:
        """Tokens of the greedy translation of each source."""
        c = Columns(batch, device)
        return [t.cpu().numpy() for t in model.translate(c.tokens, c.lengths, c.prompt_length, self.max_new_tokens)]


def prepare(rows: Rows, tokenizer: Any, max_length: int) -> Prepared:
    """Source and target (or prompt and completion), each with its end token and at most ``max_length`` long.

    prompt_length is the source's length, and the loss is on the target.
    """

    def encode_row(rows: Rows, index: int) -> list[Example] | None:
        columns = _columns(rows, index)
        rows.require(index, *columns)
        source, target = (rows.text(index, column) for column in columns)
        sides = side_ids(source, tokenizer), side_ids(target, tokenizer, target=True)
        return [Example.of_answer(*sides)] if max(map(len, sides)) <= max_length else None

    return prepare_rows(rows, encode_row, 2 * max_length)


def _columns(rows: Rows, index: int) -> tuple[str, str]:
    return ("prompt", "completion") if "prompt" in rows[index] else ("source", "target")


def judge_translations(job: Seq2SeqJob, data: TaskData, rows: Rows | None, tokenizer: Any) -> Judge | None:
    """BLEU and chrF of the first held-out rows' translations; None if the job asks for none."""
    count, language = job.evaluate.translated, job.evaluate.language
    if rows is None or data.heldout is None or not count:
        return None
    text.sacrebleu()  # if it is missing, that shows before anything is trained
    column = _columns(rows, 0)[1]
    references = [[str(rows[int(i)][column])] for i in data.heldout.example_id[:count]]

    def judge(translations: list[np.ndarray]) -> dict[str, Any]:
        texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in translations]
        return {"bleu": text.bleu(texts, references, language), "chrf": text.chrf(texts, references)}

    return judge


def build(job: Seq2SeqJob, rows: Rows, heldout: Rows | None, tokenizer: Any) -> Task:
    """An encoder-decoder on pairs of source and target."""
    data = prepare_data(job, prepare, rows, heldout, tokenizer)
    judge = judge_translations(job, data, heldout, tokenizer)
    return Task(
        objective=Seq2SeqObjective(
            label_smoothing=job.label_smoothing, max_new_tokens=job.evaluate.longest or job.max_length
        ),
        data=data,
        judge=judge,
        num_judged=None if judge is None else job.evaluate.translated,
        perplexity=True,
    )


SEQ2SEQ = TaskKind(model="seq2seq", build=build)
