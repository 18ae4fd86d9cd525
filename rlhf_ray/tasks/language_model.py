"""Causal language modelling: pre-training on text, and the auxiliary loss of PPO-ptx."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..algorithms import losses
from ..algorithms.noise import embedding_noise
from ..batch import Batch
from ..config import PretrainJob
from ..data.encode import text_ids
from ..data.examples import Rows
from ..data.prepared import Example, Prepared, prepare_rows
from ..data.stream import Stream
from ..learner.objectives import Columns, Loss, PerToken
from .base import Task, TaskKind, prepare_data


@dataclass(frozen=True)
class LanguageModelObjective(PerToken):
    """Cross-entropy of the tokens in response_mask: pre-training, supervised fine-tuning, PPO-ptx.

    ``neftune_alpha`` above 0 adds noise to the embeddings if a gradient is taken; a row's noise is drawn from its ``seed``.
    """

    neftune_alpha: float = 0.0

    def loss(self, model: Any, batch: Batch, device: torch.device) -> Loss:
        """Summed negative log-probs in nats."""
        c = Columns(batch, device)
        noise = None
        if self.neftune_alpha and torch.is_grad_enabled():
            noise = embedding_noise(c.lengths, model.embedding_width, self.neftune_alpha, batch.seed.tolist())
        log_probs, _ = model(c.tokens, c.lengths, c.sampled, noise=noise)
        return losses.cross_entropy(log_probs, torch.ones_like(log_probs, dtype=torch.bool))


def prepare(rows: Rows, tokenizer: Any, max_length: int) -> Prepared:
    """Column text, then the end token, in pieces of at most ``max_length``. The loss is on all tokens but a piece's first."""

    def encode_row(rows: Rows, index: int) -> list[Example]:
        ids = text_ids(rows.text(index, "text"), tokenizer)
        pieces = [ids[start : start + max_length] for start in range(0, len(ids), max_length)]
        return [Example.of_text(piece) for piece in pieces if len(piece) > 1]

    return prepare_rows(rows, encode_row, max_length)


def build(job: PretrainJob, rows: Rows | Stream, heldout: Rows | None, tokenizer: Any) -> Task:
    """Pre-training on text."""
    data = prepare_data(job, prepare, rows, heldout, tokenizer)
    return Task(objective=LanguageModelObjective(), data=data, perplexity=True)


LANGUAGE_MODEL = TaskKind(model="policy", build=build)
