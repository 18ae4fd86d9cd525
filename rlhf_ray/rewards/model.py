"""A sequence-classification reward model: one logit, read at the last token by `lengths`, not by looking for a pad id."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..batch import Batch, from_sequences, micro_batches
from ..config import ModelConfig, ModelReward
from ..data import tokenizer as tokenizers
from ..models import load as models
from .reward import RewardError


class ModelScorer:
    """Scores completions with the model of a term. Foreign tokenizers get text, never the policy's ids."""

    def __init__(self, term: ModelReward, policy_tokenizer: Any, device: str) -> None:
        self.term, self.device = term, torch.device(device)
        self.tokenizer = tokenizers.load(ModelConfig(path=term.path), term.path)
        self.same = self.tokenizer.get_vocab() == policy_tokenizer.get_vocab()
        self.eos = int(self.tokenizer.eos_token_id)
        self.context = models.context_length(term.path)
        self.model = self._load().to(self.device).eval()
        self.model.check(models.vocab_size(term.path))

    def _load(self) -> Any:
        """The model. Raises RewardError where transformers would make up a random head: no trained one, or of other size."""
        if not models.has_head(self.term.path):
            raise RewardError(
                f"reward '{self.term.name}': {self.term.path} holds a model without a trained reward head; "
                "train one with job: reward, or give a sequence-classification model"
            )
        try:
            return models.load("scalar", self.term.path)
        except RuntimeError as error:
            first = str(error).strip().splitlines()[0]
            raise RewardError(
                f"reward '{self.term.name}': {self.term.path} cannot be read as a model with one logit ({first}); "
                "give a reward model with num_labels 1"
            ) from None

    @torch.no_grad()
    def __call__(self, batch: Batch, prompts: list[str], completions: list[str]) -> np.ndarray:
        """Scores (B,) float32. Raises RewardError for a sequence longer than the model's context."""
        sequences = batch.sequences()
        if not self.same:
            sequences = [self._ids(p + c) for p, c in zip(prompts, completions, strict=True)]
        whole = from_sequences([s if len(s) and s[-1] == self.eos else np.append(s, self.eos) for s in sequences])
        if whole.lengths.max() > self.context:
            raise RewardError(
                f"reward '{self.term.name}': the sequence of example {batch.example_id[whole.lengths.argmax()]} has "
                f"{whole.lengths.max()} tokens, more than the reward model's context of {self.context}; "
                "lower rollout.max_new_tokens or data.max_prompt_tokens"
            )
        found = np.zeros(len(whole), np.float32)
        for rows in micro_batches(whole.lengths, self.term.micro_batch_tokens, 1)[0]:
            part = whole.take(rows)
            lengths = torch.tensor(part.lengths, device=self.device)
            tokens = torch.tensor(part.tokens, device=self.device).long()
            found[rows] = self.model(tokens, lengths, torch.cumsum(lengths, 0) - 1).cpu().numpy()
        return found

    def _ids(self, text: str) -> np.ndarray:
        return np.array(self.tokenizer(text)["input_ids"], dtype=np.int32)
