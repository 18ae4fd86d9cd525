"""How likely a causal language model finds an answer: fluency, for a model that is not trained along."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..batch import Batch, from_sequences
from ..models.load import has_reward_head, load_model
from .model import Scorer
from .reward import RewardError


class LikelihoodScorer(Scorer):
    """The mean log-prob, in nats, of an answer's tokens after its prompt; the end token is one of them where the answer ended.

    With the policy's tokenizer these are the sampled tokens. With another one, those beyond what prompt and prompt with
    answer have in common.
    """

    num_added = 0

    def _load(self) -> Any:
        """The model. Raises RewardError for a reward model, whose language-model head transformers would make up."""
        if has_reward_head(self.term.path):
            raise RewardError(
                f"reward '{self.term.name}': {self.term.path} holds a reward model, which says nothing of how likely a text is; "
                "give a causal language model, or take type: model"
            )
        return load_model("policy", self.term.path, dtype=self.dtype)

    def _sequences(self, batch: Batch, prompts: list[Any], completions: list[str]) -> Batch:
        if self.same:
            return batch
        texts = zip(prompts, completions, batch.truncated, strict=True)
        whole = [np.append(self._ids(p, c), [] if cut else [self.eos]).astype(np.int32) for p, c, cut in texts]
        starts = [_common(w, self._ids(p, "")) for w, p in zip(whole, prompts, strict=True)]
        return from_sequences(whole, prompt_length=starts)

    def _read(self, part: Batch) -> np.ndarray:
        """(B,) float32; NaN for an answer without a token."""
        lengths = torch.tensor(part.lengths, device=self.device)
        tokens = torch.tensor(part.tokens, device=self.device).long()
        row = np.repeat(np.arange(len(part)), part.lengths)
        place = np.arange(len(row)) - part.offsets[row]
        at = np.flatnonzero(place >= np.maximum(1, part.prompt_length)[row])
        if not len(at):
            return np.full(len(part), np.nan, np.float32)
        log_probs = self.model(tokens, lengths, torch.tensor(at, device=self.device))[0].double().cpu().numpy()
        count = np.bincount(row[at], minlength=len(part))
        total = np.bincount(row[at], log_probs, len(part))
        return np.where(count > 0, total / np.maximum(1, count), np.nan).astype(np.float32)


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """Length of the longest common prefix."""
    n = min(len(one), len(other))
    differ = np.flatnonzero(one[:n] != other[:n])
    return int(differ[0]) if len(differ) else n
