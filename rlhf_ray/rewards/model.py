"""Reward terms with a model, and the reward model with one logit.

The logit is read at the last token, whose position is known from the lengths; no pad id is looked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..batch import Batch, from_sequences, micro_batches
from ..config import ModelConfig, ModelReward, resolve_dtype
from ..data.encode import prompt_ids
from ..data.tokenizer import load_tokenizer
from ..models.load import DTYPES, has_reward_head, load_model, read_context_length, read_vocab_size
from .reward import RewardError, Samples, ScorerContext, TermScorer, checked


class NeuralScorer(TermScorer):
    """Scores completions with the model of a term. A model with another tokenizer gets text, never the policy's ids."""

    num_added: int
    """Tokens that a sequence may get after its last."""

    def __init__(self, term: Any, context: ScorerContext) -> None:
        self.term, self.device = term, torch.device(context.device)
        self.tokenizer = load_tokenizer(ModelConfig(path=term.path), term.path)
        policy = context.tokenizer
        self.same_tokenizer = policy is not None and self.tokenizer.get_vocab() == policy.get_vocab()
        self.eos = int(self.tokenizer.eos_token_id)
        self.context = read_context_length(term.path)
        self.dtype = DTYPES[resolve_dtype(term.dtype, context.device)]
        self.model = self._load().to(self.device).eval()
        self.model.check(read_vocab_size(term.path))

    def _load(self) -> Any:
        raise NotImplementedError

    def _sequences(self, batch: Batch, prompts: list[Any], completions: list[str]) -> Batch:
        """What the model reads, a row for each of ``batch``."""
        raise NotImplementedError

    def _read(self, part: Batch) -> np.ndarray:
        """The scores (B,) of some of these rows."""
        raise NotImplementedError

    def score(self, samples: Samples) -> np.ndarray:
        """As :class:`TermScorer` says."""
        scores = self(samples.batch, samples.prompts, samples.completions)
        return checked(self.term.name, self.term.path, scores, samples.batch.example_id.tolist(), self.term.on_error)

    @torch.no_grad()
    def __call__(self, batch: Batch, prompts: list[Any], completions: list[str]) -> np.ndarray:
        """Scores (B,) float32. Raises RewardError for a sequence longer than the context; under on_error: drop it has NaN."""
        sequences = self._sequences(batch, prompts, completions)
        fitting = np.flatnonzero(sequences.lengths <= self.context)
        if len(fitting) < len(sequences) and self.term.on_error == "fail":
            raise RewardError(
                f"reward '{self.term.name}': the sequence of example {batch.example_id[sequences.lengths.argmax()]} has "
                f"{sequences.lengths.max()} tokens, more than the reward model's context of {self.context}; "
                "lower rollout.max_new_tokens or data.max_prompt_tokens, or set on_error: drop"
            )
        scores = np.full(len(sequences), np.nan, np.float32)
        for chosen in micro_batches(sequences.lengths[fitting], self.term.micro_batch_tokens, 1)[0]:
            rows = fitting[chosen]
            scores[rows] = self._read(sequences.take(rows))
        return scores

    def require(self, max_tokens: int) -> None:
        """Raises RewardError if ``max_tokens`` of the policy's tokens, and an end token, can exceed this model's context."""
        excess = max_tokens + self.num_added - self.context
        if self.same_tokenizer and excess > 0:
            end_token = " and gets an end token" if self.num_added else ""
            raise RewardError(
                f"reward '{self.term.name}': a truncated sample has up to {max_tokens} tokens{end_token}, more than the "
                f"reward model's context of {self.context}; lower rollout.max_new_tokens or data.max_prompt_tokens by {excess}"
            )

    def _ids(self, prompt: Any, completion: str) -> np.ndarray:
        place = f"reward '{self.term.name}', prompt"
        return np.array(prompt_ids(prompt, self.tokenizer, place, completion), dtype=np.int32)


class ModelScorer(NeuralScorer):
    """One logit, read at the end token, which a truncated answer gets too."""

    num_added = 1
    term: ModelReward

    def _load(self) -> Any:
        """The model. Raises RewardError if transformers would draw a random head: none is trained, or its size differs."""
        if not has_reward_head(self.term.path):
            raise RewardError(
                f"reward '{self.term.name}': {self.term.path} holds a model without a trained reward head; "
                "train one with job: reward, or give a sequence-classification model"
            )
        try:
            return load_model("scalar", self.term.path, dtype=self.dtype)
        except RuntimeError as error:
            first = str(error).strip().splitlines()[0]
            raise RewardError(
                f"reward '{self.term.name}': {self.term.path} cannot be read as a model with one logit ({first}); "
                "give a reward model with num_labels 1"
            ) from None

    def _sequences(self, batch: Batch, prompts: list[Any], completions: list[str]) -> Batch:
        sequences = batch.sequences()
        if not self.same_tokenizer:
            sequences = [self._ids(p, c) for p, c in zip(prompts, completions, strict=True)]
        return from_sequences([s if len(s) and s[-1] == self.eos else np.append(s, self.eos) for s in sequences])

    def _read(self, part: Batch) -> np.ndarray:
        lengths = torch.tensor(part.lengths, device=self.device)
        tokens = torch.tensor(part.tokens, device=self.device).long()
        scores: np.ndarray = self.model(tokens, lengths, torch.cumsum(lengths, 0) - 1).cpu().numpy()
        return scores

    @torch.no_grad()
    def steps(self, batch: Batch) -> np.ndarray | None:
        """(T,) float32: the score of each step at its last token, 0 elsewhere. The end of an answer ends a step too.

        A step ends at a token whose text contains the separator. Raises RewardError if the tokenizer is not the
        policy's, because no token of the batch then ends a step. None if the term scores whole answers.

            separator "."   tokens  the view was . it was warm <eos>
                            scores   0    0   0  s  0  0   0    s
        """
        if self.term.steps is None:
            return None
        if not self.same_tokenizer:
            raise RewardError(
                f"reward '{self.term.name}': steps are scored at the policy's tokens, and {self.term.path} has another tokenizer"
            )
        scores = np.zeros(len(batch.tokens), np.float32)
        text_of = {int(t): self.tokenizer.decode([int(t)]) for t in np.unique(batch.tokens)}
        ends = np.array([self.term.steps in text_of[int(t)] for t in batch.tokens])
        ends[batch.offsets[1:] - 1] = True
        ends &= batch.response_mask.astype(bool)
        positions = np.arange(len(batch.tokens))
        for rows in micro_batches(batch.lengths, self.term.micro_batch_tokens, 1)[0]:
            part = batch.take(rows)
            positions_of_part = np.concatenate([positions[batch.offsets[r] : batch.offsets[r + 1]] for r in rows])
            ends_of_part = np.flatnonzero(ends[positions_of_part])
            if len(ends_of_part):
                inputs = (torch.tensor(x, device=self.device).long() for x in (part.tokens, part.lengths, ends_of_part))
                scores[positions_of_part[ends_of_part]] = self.model(*inputs).cpu().numpy()
        return scores
