"""Extractive question answering: the span of a context that answers a question, or none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..algorithms import losses
from ..batch import Batch
from ..learner.objectives import Columns, Loss, PerRow


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
