"""Objectives of encoders, task heads and encoder-decoders: masked tokens, classes of texts and of tokens, spans, translations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..algorithms import losses
from ..batch import Batch
from .objectives import Columns


@dataclass(frozen=True)
class TokenObjective:
    """Cross-entropy of ``targets`` where response_mask is 1: masked tokens (Devlin et al. 2018, arXiv 1810.04805) or tags."""

    name: str
    unit: str | None = None

    def weight(self, batch: Batch) -> float:
        """Tokens that are predicted."""
        return float(batch.response_mask.sum())

    def loss(self, model: Any, batch: Batch, device: torch.device) -> tuple[Tensor, dict[str, Any]]:
        """Summed over these tokens."""
        c = Columns(batch, device)
        at = torch.nonzero(c.response_mask).squeeze(-1)
        logits, wanted = model(c.tokens, c.lengths, at), c.targets[at]
        loss = F.cross_entropy(logits, wanted, reduction="none")
        every = torch.ones_like(loss)
        return loss.sum(), {
            f"loss/{self.name}": losses.metric(loss, every),
            f"{self.name}/accuracy": losses.metric(logits.argmax(-1) == wanted, every),
        }

    def predict(self, model: Any, batch: Batch, device: torch.device) -> list[np.ndarray]:
        """The likeliest class of each of these tokens, an array for each sequence."""
        c = Columns(batch, device)
        at = torch.nonzero(c.response_mask).squeeze(-1)
        found = model(c.tokens, c.lengths, at).argmax(-1).cpu().numpy()
        return np.split(found, np.cumsum(batch.response_lengths)[:-1])


@dataclass(frozen=True)
class ClassObjective:
    """Cross-entropy of a sequence's class, each weighted by its class, and focal where ``gamma`` is above 0.

    ``(1 - p)^gamma`` turns the loss to what is not yet learnt (Lin et al. 2017, arXiv 1708.02002).
    """

    class_weights: tuple[float, ...]
    gamma: float = 0.0
    unit: str | None = None

    def weight(self, batch: Batch) -> float:
        """Rows, each counted by its class's weight."""
        return float(np.asarray(self.class_weights)[batch.labels[:, 0].astype(int)].sum())

    def loss(self, model: Any, batch: Batch, device: torch.device) -> tuple[Tensor, dict[str, Any]]:
        """Summed over rows."""
        c = Columns(batch, device)
        logits, wanted = model(c.tokens, c.lengths), c.labels[:, 0].long()
        plain = F.cross_entropy(logits, wanted, reduction="none")
        weights = torch.tensor(self.class_weights, device=device)[wanted]
        loss = weights * (1 - torch.exp(-plain)) ** self.gamma * plain if self.gamma else weights * plain
        every = torch.ones_like(plain)
        return loss.sum(), {
            "loss/cross_entropy": losses.metric(plain, every),
            "class/accuracy": losses.metric(logits.argmax(-1) == wanted, every),
        }

    def predict(self, model: Any, batch: Batch, device: torch.device) -> list[np.ndarray]:
        """Probabilities (classes,) of each sequence."""
        c = Columns(batch, device)
        return list(model(c.tokens, c.lengths).softmax(-1).cpu().numpy())


@dataclass(frozen=True)
class SpanObjective:
    """Cross-entropy of a span's first and last token over a context's tokens, averaged; the first token of all means none.

    Devlin et al. 2018, arXiv 1810.04805, section 4.2 and 4.3. labels (B, 2) are positions in the sequence.
    """

    longest: int
    unit: str | None = None

    def weight(self, batch: Batch) -> float:
        """Rows."""
        return float(len(batch))

    def loss(self, model: Any, batch: Batch, device: torch.device) -> tuple[Tensor, dict[str, Any]]:
        """Summed over rows."""
        c = Columns(batch, device)
        rows = self._log_probs(model, c)
        wanted = c.labels.long()
        each = torch.stack([-(row.gather(0, w[None]).mean()) for row, w in zip(rows, wanted, strict=True)])
        right = torch.stack([(row.argmax(0) == w).all() for row, w in zip(rows, wanted, strict=True)])
        every = torch.ones_like(each)
        return each.sum(), {"loss/span": losses.metric(each, every), "span/exact": losses.metric(right, every)}

    def predict(self, model: Any, batch: Batch, device: torch.device) -> list[np.ndarray]:
        """(3,) of each sequence: first and last position of the best span of the context, and its score less that of none."""
        found = []
        for row in self._log_probs(model, Columns(batch, device)):
            start, end = row[:, 0], row[:, 1]
            both = start[:, None] + end[None, :]
            length = torch.arange(len(row), device=device)
            ahead = length[None, :] - length[:, None]
            both[(ahead < 0) | (ahead >= self.longest)] = -torch.inf
            both[0, :] = -torch.inf
            best = int(both.argmax())
            score = float(both.flatten()[best] - start[0] - end[0])
            found.append(np.array([best // len(row), best % len(row), score]))
        return found

    def _log_probs(self, model: Any, c: Columns) -> list[Tensor]:
        """(length, 2) of each sequence, of a span beginning and ending at each token: only the context's and the first can."""
        first = torch.cumsum(c.lengths, 0) - c.lengths
        allowed = c.response_mask.bool().index_fill(0, first, True)
        logits = model(c.tokens, c.lengths, c.prompt_length).masked_fill(~allowed[:, None], -torch.inf)
        return [row.log_softmax(0) for row in logits.split(c.lengths.tolist())]


@dataclass(frozen=True)
class Seq2SeqObjective:
    """Cross-entropy of the target tokens (response_mask) of an encoder-decoder given the source before them (prompt_length).

    ``label_smoothing`` is in the loss, never in what is measured; ``longest`` is the most tokens of a translation.
    """

    label_smoothing: float = 0.0
    longest: int = 128
    unit: str | None = None

    def weight(self, batch: Batch) -> float:
        """Target tokens."""
        return float(batch.response_mask.sum())

    def loss(self, model: Any, batch: Batch, device: torch.device) -> tuple[Tensor, dict[str, Any]]:
        """Summed over target tokens."""
        c = Columns(batch, device)
        logits = model(c.tokens, c.lengths, c.prompt_length)
        return losses.smoothed_cross_entropy(logits, c.tokens[c.response_mask.bool()], self.label_smoothing)

    def predict(self, model: Any, batch: Batch, device: torch.device) -> list[np.ndarray]:
        """Tokens of the greedy translation of each source."""
        c = Columns(batch, device)
        return [row.cpu().numpy() for row in model.translate(c.tokens, c.lengths, c.prompt_length, self.longest)]
