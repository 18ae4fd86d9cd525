"""Models with a task head: masked tokens, tags, classes, spans. Encoders run on padded rectangles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .log_probs import Ragged, rectangle


class PaddedHead(Ragged):
    """A transformers model with its head as it is; never packed, so nothing is to be checked."""

    def __init__(self, model: nn.Module, attention: str) -> None:
        super().__init__(model, "padded")

    def check(self, vocab_size: int) -> float:
        """0: there is one path only."""
        return 0.0

    def padded(self, tokens: Tensor, lengths: Tensor, second: Tensor | None = None) -> tuple[Any, Tensor, Tensor]:
        """The model's output, and row and column of each of the T tokens. ``second`` (B,): where the second text begins."""
        at = torch.arange(len(tokens), device=tokens.device)
        ids, mask, row, column = rectangle(tokens, lengths, at)
        more = {}
        if second is not None and getattr(self.core.config, "type_vocab_size", 0) > 1:
            places = torch.arange(ids.shape[1], device=ids.device)[None]
            more["token_type_ids"] = ((places >= second[:, None]) & mask.bool()).long()
        return self.model(input_ids=ids, attention_mask=mask, **more), row, column


class TokenModel(PaddedHead):
    """Classes of tokens: a masked language model, or tags."""

    def forward(self, tokens: Tensor, lengths: Tensor, at: Tensor) -> Tensor:
        """Logits (R, k) float32 of the tokens at flat positions ``at`` (R,)."""
        out, row, column = self.padded(tokens, lengths)
        return out.logits[row[at], column[at]].float()


class SpanModel(PaddedHead):
    """A span of a context: where it begins and ends."""

    def forward(self, tokens: Tensor, lengths: Tensor, second: Tensor) -> Tensor:
        """Logits (T, 2) float32 of beginning and end at each token; ``second`` (B,) is where the context begins."""
        out, row, column = self.padded(tokens, lengths, second)
        return torch.stack([out.start_logits[row, column], out.end_logits[row, column]], -1).float()


class ClassModel(Ragged):
    """Classes of sequences: a decoder's are read at the last token, packed; an encoder's as its own head reads them."""

    def __init__(self, model: nn.Module, attention: str) -> None:
        self.at_end = isinstance(getattr(model, "score", None), nn.Linear)
        super().__init__(model, attention if self.at_end else "padded")

    def check(self, vocab_size: int) -> float:
        """As every Ragged's where there are two paths."""
        return super().check(vocab_size) if self.at_end else 0.0

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, k) float32."""
        if self.at_end:
            logits: Tensor = self.core.score(self.hidden(tokens, lengths, torch.cumsum(lengths, 0) - 1))
            return logits.float()
        at = torch.arange(len(tokens), device=tokens.device)
        ids, mask, _, _ = rectangle(tokens, lengths, at)
        return self.model(input_ids=ids, attention_mask=mask).logits.float()
