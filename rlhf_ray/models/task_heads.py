"""Models with a task head: masked tokens, tags, classes, spans. Encoders run on padded rectangles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .log_probs import Ragged, rectangle


class PaddedHead(Ragged):
    """A transformers model with its own head, on padded rectangles only."""

    def __init__(self, model: nn.Module, attention: str) -> None:
        super().__init__(model, "padded")

    def check(self, vocab_size: int) -> float:
        """Returns 0: there is no packed pass to compare with."""
        return 0.0

    def padded(self, tokens: Tensor, lengths: Tensor, second: Tensor | None = None) -> tuple[Any, Tensor, Tensor]:
        """The model's output for ``tokens`` (T,) of sequences of ``lengths`` (B,), and each token's row and column
        (T,).

        ``second`` (B,): the position in each sequence at which its second text begins, if it has two.
        """
        positions = torch.arange(len(tokens), device=tokens.device)
        ids, mask, row, column = rectangle(tokens, lengths, positions)
        token_types = {}
        if second is not None and getattr(self.core.config, "type_vocab_size", 0) > 1:
            columns = torch.arange(ids.shape[1], device=ids.device)[None]
            token_types["token_type_ids"] = ((columns >= second[:, None]) & mask.bool()).long()
        return self.model(input_ids=ids, attention_mask=mask, **token_types), row, column


class TokenModel(PaddedHead):
    """Classes of tokens: a masked language model (k is the vocabulary) or a tagger (k tags)."""

    def forward(self, tokens: Tensor, lengths: Tensor, positions: Tensor) -> Tensor:
        """Logits (R, k) float32 of the tokens at the flat ``positions`` (R,)."""
        out, row, column = self.padded(tokens, lengths)
        return out.logits[row[positions], column[positions]].float()


class SpanModel(PaddedHead):
    """The span of a context that answers a question: its first and its last token."""

    def forward(self, tokens: Tensor, lengths: Tensor, second: Tensor) -> Tensor:
        """Logits (T, 2) float32: that the span begins, and that it ends, at each token.

        ``second`` (B,): the position in each sequence at which the context begins.
        """
        out, row, column = self.padded(tokens, lengths, second)
        return torch.stack([out.start_logits[row, column], out.end_logits[row, column]], -1).float()


class ClassModel(Ragged):
    """Classes of sequences. A decoder is read at the last token and may run packed; an encoder uses its own head."""

    def __init__(self, model: nn.Module, attention: str) -> None:
        self.reads_last_token = isinstance(getattr(model, "score", None), nn.Linear)
        super().__init__(model, attention if self.reads_last_token else "padded")

    def check(self, vocab_size: int) -> float:
        """As :meth:`Ragged.check` if the model may run packed; else 0."""
        return super().check(vocab_size) if self.reads_last_token else 0.0

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, k) float32."""
        if self.reads_last_token:
            last_positions = torch.cumsum(lengths, 0) - 1
            logits: Tensor = self.core.score(self.hidden(tokens, lengths, last_positions))
            return logits.float()
        ids, mask, _, _ = rectangle(tokens, lengths, tokens.new_zeros(0))
        return self.model(input_ids=ids, attention_mask=mask).logits.float()
