"""A classifier as a reward: how sure it is that a completion is of the class it should be of."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..batch import from_sequences, micro_batches
from ..config import ClassifierReward, ModelConfig, resolve_dtype
from ..data import tokenizer as tokenizers
from ..data.encode import encode_text
from ..models.load import DTYPES, has_reward_head, load_model, read_config, read_context_length, read_vocab_size
from .reward import RewardError


class ClassifierScorer:
    """The probability of a completion's class, by a model that `job: classify` made or any like it; it reads text, cut at its context."""

    def __init__(self, term: ClassifierReward, device: str) -> None:
        self.term, self.device = term, torch.device(device)
        if not has_reward_head(term.path):
            raise RewardError(f"reward '{term.name}': {term.path} holds no classifier; train one with job: classify")
        named = read_config(term.path).get("id2label") or {}
        self.labels = {str(name): int(i) for i, name in named.items()}
        self.tokenizer = tokenizers.load(ModelConfig(path=term.path), term.path, ends=False)
        self.context = read_context_length(term.path)
        self.model = (
            load_model("classes", term.path, dtype=DTYPES[resolve_dtype(term.dtype, device)]).to(self.device).eval()
        )
        self.model.check(read_vocab_size(term.path))
        if term.label is not None:
            self._place(term.label)

    @torch.no_grad()
    def __call__(self, prompts: list[Any], completions: list[str], **columns: list[Any]) -> list[float]:
        """Probabilities (B,) of the class that the term or its column names. Raises RewardError for one the model has not."""
        wanted = [self.term.label] * len(completions) if self.term.label is not None else columns.get(self.term.column)
        if wanted is None:
            raise RewardError(
                f"reward '{self.term.name}': the dataset has no column '{self.term.column}' with the class; it has prompt"
                f"{''.join(f', {c}' for c in columns)}; name another with column, or one class with label"
            )
        places = [self._place(str(name)) for name in wanted]
        whole = from_sequences([np.array(self._ids(text)) for text in completions])
        found = np.zeros(len(whole), np.float32)
        for rows in micro_batches(whole.lengths, max(self.term.micro_batch_tokens, int(whole.lengths.max())), 1)[0]:
            part = whole.take(rows)
            tokens = torch.tensor(part.tokens, device=self.device).long()
            logits = self.model(tokens, torch.tensor(part.lengths, device=self.device))
            found[rows] = logits.softmax(-1).cpu().numpy()[np.arange(len(rows)), [places[r] for r in rows]]
        return [float(p) for p in found]

    def _ids(self, text: str) -> list[int]:
        ids = encode_text(self.tokenizer, text).ids
        return ids if len(ids) <= self.context else [*ids[: self.context - 1], ids[-1]]

    def _place(self, label: str) -> int:
        if label not in self.labels:
            there = ", ".join(self.labels)
            raise RewardError(f"reward '{self.term.name}': {self.term.path} has no class '{label}'; it has {there}")
        return self.labels[label]
