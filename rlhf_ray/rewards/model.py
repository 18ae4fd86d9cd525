"""Terms with a model; of these the sequence-classification reward model: one logit, read at the last token by `lengths`, not by
looking for a pad id."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..batch import Batch, from_sequences, micro_batches
from ..config import ModelConfig, ModelReward, resolve_dtype
from ..data import tokenizer as tokenizers
from ..data.encode import prompt_ids
from ..models.load import DTYPES, has_reward_head, load_model, read_context_length, read_vocab_size
from .reward import RewardError


class Scorer:
    """Scores completions with the model of a term. Foreign tokenizers get text, never the policy's ids."""

    num_added: int  # tokens that a sequence may get behind its last

    def __init__(self, term: Any, policy_tokenizer: Any, device: str) -> None:
        self.term, self.device = term, torch.device(device)
        self.tokenizer = tokenizers.load(ModelConfig(path=term.path), term.path)
        self.same = policy_tokenizer is not None and self.tokenizer.get_vocab() == policy_tokenizer.get_vocab()
        self.eos = int(self.tokenizer.eos_token_id)
        self.context = read_context_length(term.path)
        self.dtype = DTYPES[resolve_dtype(term.dtype, device)]
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

    @torch.no_grad()
    def __call__(self, batch: Batch, prompts: list[Any], completions: list[str]) -> np.ndarray:
        """Scores (B,) float32; too long for the model's context: RewardError, NaN under on_error: drop."""
        whole = self._sequences(batch, prompts, completions)
        fitting = np.flatnonzero(whole.lengths <= self.context)
        if len(fitting) < len(whole) and self.term.on_error == "fail":
            raise RewardError(
                f"reward '{self.term.name}': the sequence of example {batch.example_id[whole.lengths.argmax()]} has "
                f"{whole.lengths.max()} tokens, more than the reward model's context of {self.context}; "
                "lower rollout.max_new_tokens or data.max_prompt_tokens, or set on_error: drop"
            )
        found = np.full(len(whole), np.nan, np.float32)
        for chosen in micro_batches(whole.lengths[fitting], self.term.micro_batch_tokens, 1)[0]:
            rows = fitting[chosen]
            found[rows] = self._read(whole.take(rows))
        return found

    def require(self, longest: int) -> None:
        """Raises RewardError where ``longest`` tokens of the policy, and an end token, can exceed this model's context."""
        over = longest + self.num_added - self.context
        if self.same and over > 0:
            gets = " and gets an end token" if self.num_added else ""
            raise RewardError(
                f"reward '{self.term.name}': a truncated sample has up to {longest} tokens{gets}, more than the "
                f"reward model's context of {self.context}; lower rollout.max_new_tokens or data.max_prompt_tokens by {over}"
            )

    def _ids(self, prompt: Any, completion: str) -> np.ndarray:
        where = f"reward '{self.term.name}', prompt"
        return np.array(prompt_ids(prompt, self.tokenizer, where, completion), dtype=np.int32)


class ModelScorer(Scorer):
    """One logit, read at the end token, which a truncated answer gets too."""

    num_added = 1
    term: ModelReward

    def _load(self) -> Any:
        """The model. Raises RewardError where transformers would make up a random head: no trained one, or of other size."""
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
        if not self.same:
            sequences = [self._ids(p, c) for p, c in zip(prompts, completions, strict=True)]
        return from_sequences([s if len(s) and s[-1] == self.eos else np.append(s, self.eos) for s in sequences])

    def _read(self, part: Batch) -> np.ndarray:
        lengths = torch.tensor(part.lengths, device=self.device)
        tokens = torch.tensor(part.tokens, device=self.device).long()
        scores: np.ndarray = self.model(tokens, lengths, torch.cumsum(lengths, 0) - 1).cpu().numpy()
        return scores

    @torch.no_grad()
    def steps(self, batch: Batch) -> np.ndarray:
        """(T,) float32: the score of each step of the answers at its last token, 0 elsewhere; an answer's end ends a step too.

        Raises RewardError where the tokenizer is not the policy's: then no token of it ends the step.
        """
        if not self.same:
            raise RewardError(
                f"reward '{self.term.name}': steps are scored at the policy's tokens, and {self.term.path} has another tokenizer"
            )
        separator, found = str(self.term.steps), np.zeros(len(batch.tokens), np.float32)
        pieces = {int(t): self.tokenizer.decode([int(t)]) for t in np.unique(batch.tokens)}
        ends = np.array([separator in pieces[int(t)] for t in batch.tokens])
        ends[batch.offsets[1:] - 1] = True
        ends &= batch.response_mask.astype(bool)
        place = np.arange(len(batch.tokens))
        for rows in micro_batches(batch.lengths, self.term.micro_batch_tokens, 1)[0]:
            part = batch.take(rows)
            flat = np.concatenate([place[batch.offsets[r] : batch.offsets[r + 1]] for r in rows])
            at = np.flatnonzero(ends[flat])
            if len(at):
                given = (torch.tensor(x, device=self.device).long() for x in (part.tokens, part.lengths, at))
                found[flat[at]] = self.model(*given).cpu().numpy()
        return found
