"""A classifier as a reward: its probability that a completion is of the wanted class."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..batch import from_sequences, micro_batches
from ..config import ClassifierReward, ModelConfig, resolve_dtype
from ..data.encode import encode_text
from ..data.tokenizer import load_tokenizer
from ..models.load import DTYPES, has_reward_head, load_model, read_config, read_context_length, read_vocab_size
from .reward import RewardError, Samples, ScorerContext, TermScorer, checked


class ClassifierScorer(TermScorer):
    """The probability of a completion's class, by a model that `job: classify` trained or any like it.

    It reads text, and cuts it at its context.
    """

    def __init__(self, term: ClassifierReward, context: ScorerContext) -> None:
        self.term, self.device = term, torch.device(context.device)
        if not has_reward_head(term.path):
            raise RewardError(f"reward '{term.name}': {term.path} holds no classifier; train one with job: classify")
        name_of_class = read_config(term.path).get("id2label") or {}
        self.labels = {str(name): int(i) for i, name in name_of_class.items()}
        self.tokenizer = load_tokenizer(ModelConfig(path=term.path), term.path, ends=False)
        self.context = read_context_length(term.path)
        dtype = DTYPES[resolve_dtype(term.dtype, context.device)]
        self.model = load_model("classes", term.path, dtype=dtype).to(self.device).eval()
        self.model.check(read_vocab_size(term.path))
        if term.label is not None:
            self._class_index(term.label)

    def score(self, samples: Samples) -> np.ndarray:
        """As :class:`TermScorer` says."""
        labels: list[Any] | None = samples.columns.get(self.term.column)
        if self.term.label is not None:
            labels = [self.term.label] * len(samples.completions)
        if labels is None:
            raise RewardError(
                f"reward '{self.term.name}': the dataset has no column '{self.term.column}' with the class; it has "
                f"{samples.column_names()}; name another with column, or one class with label"
            )
        probabilities = self.probabilities(samples.completions, [self._class_index(str(label)) for label in labels])
        example_id = samples.batch.example_id.tolist()
        return checked(self.term.name, self.term.path, probabilities, example_id, self.term.on_error)

    @torch.no_grad()
    def probabilities(self, texts: list[str], classes: list[int]) -> np.ndarray:
        """(B,) float32: the probability that each text is of its class."""
        sequences = from_sequences([np.array(self._ids(text)) for text in texts])
        probabilities = np.zeros(len(sequences), np.float32)
        budget = max(self.term.micro_batch_tokens, int(sequences.lengths.max()))
        for rows in micro_batches(sequences.lengths, budget, 1)[0]:
            part = sequences.take(rows)
            tokens = torch.tensor(part.tokens, device=self.device).long()
            logits = self.model(tokens, torch.tensor(part.lengths, device=self.device))
            probabilities[rows] = logits.softmax(-1).cpu().numpy()[np.arange(len(rows)), [classes[r] for r in rows]]
        return probabilities

    def _ids(self, text: str) -> list[int]:
        ids = encode_text(self.tokenizer, text).ids
        return ids if len(ids) <= self.context else [*ids[: self.context - 1], ids[-1]]

    def _class_index(self, label: str) -> int:
        if label not in self.labels:
            names = ", ".join(self.labels)
            raise RewardError(f"reward '{self.term.name}': {self.term.path} has no class '{label}'; it has {names}")
        return self.labels[label]
