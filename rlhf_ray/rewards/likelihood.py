"""Fluency as a reward: the mean log-prob of an answer under a frozen language model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..batch import Batch, from_sequences
from ..models.load import has_reward_head, load_model
from .model import NeuralScorer
from .reward import RewardError


class LikelihoodScorer(NeuralScorer):
    """The mean log-prob, in nats, of an answer's tokens after its prompt, and of the end token if the answer ended.

    With the policy's tokenizer these are the sampled tokens. With another one, they are the tokens after the longest
    common prefix of the prompt and of the prompt with its answer.
    """

    num_added = 0

    def _load(self) -> Any:
        """The model. Raises RewardError for a reward model, for whose language-model head transformers would draw random weights."""
        if has_reward_head(self.term.path):
            raise RewardError(
                f"reward '{self.term.name}': {self.term.path} holds a reward model, which does not say how likely a text is; "
                "give a causal language model, or use type: model"
            )
        return load_model("policy", self.term.path, dtype=self.dtype)

    def _sequences(self, batch: Batch, prompts: list[Any], completions: list[str]) -> Batch:
        if self.same_tokenizer:
            return batch
        texts = zip(prompts, completions, batch.truncated, strict=True)
        sequences = [np.append(self._ids(p, c), [] if cut else [self.eos]).astype(np.int32) for p, c, cut in texts]
        starts = [_common_prefix(s, self._ids(p, "")) for s, p in zip(sequences, prompts, strict=True)]
        return from_sequences(sequences, prompt_length=starts)

    def _read(self, part: Batch) -> np.ndarray:
        """(B,) float32; NaN for an answer without a token."""
        lengths = torch.tensor(part.lengths, device=self.device)
        tokens = torch.tensor(part.tokens, device=self.device).long()
        row = np.repeat(np.arange(len(part)), part.lengths)
        position = np.arange(len(row)) - part.offsets[row]
        scored = np.flatnonzero(position >= np.maximum(1, part.prompt_length)[row])
        if not len(scored):
            return np.full(len(part), np.nan, np.float32)
        log_probs = self.model(tokens, lengths, torch.tensor(scored, device=self.device))[0].double().cpu().numpy()
        count = np.bincount(row[scored], minlength=len(part))
        total = np.bincount(row[scored], log_probs, len(part))
        return np.where(count > 0, total / np.maximum(1, count), np.nan).astype(np.float32)


def _common_prefix(one: np.ndarray, other: np.ndarray) -> int:
    """Length of the longest common prefix."""
    n = min(len(one), len(other))
    differ = np.flatnonzero(one[:n] != other[:n])
    return int(differ[0]) if len(differ) else n
