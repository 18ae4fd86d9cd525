"""RewardWorker: rollouts and the examples they came from in, their reward parts out. Stateless."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ..batch import Batch, from_sequences
from ..config import (
    ClassifierReward,
    FunctionReward,
    LikelihoodReward,
    ModelConfig,
    ModelReward,
    RewardsConfig,
    RuleReward,
)
from ..data import tokenizer as tokenizers
from ..data.encode import completion_text
from ..models.offload import HostOffload, release_cached_memory
from .classifier import ClassifierScorer
from .function import UserFunction
from .likelihood import LikelihoodScorer
from .model import ModelScorer, Scorer
from .reward import RewardError, checked
from .rules import rule

# columns that a function cannot get: the names mean something else, as with TRL
TAKEN = ("example_id", "prompts", "completions", "completion", "completion_ids")


class RewardWorker:
    """Holds the terms of a job; ``tokenizer`` is the policy's, if there is one; ``prints`` a directory for what functions print.

    :meth:`check` builds the terms, so that what is wrong shows before any rollout.
    """

    def __init__(
        self,
        config: RewardsConfig,
        tokenizer: str | None,
        device: str = "cpu",
        num_threads: int | None = None,
        prints: str | None = None,
    ) -> None:
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self.config, self.device = config, device
        self.prints = None if prints is None else Path(prints)
        self.tokenizer = None if tokenizer is None else tokenizers.load(ModelConfig(path=tokenizer), tokenizer)
        self.terms: dict[str, Any] = {}
        self.models = HostOffload(self._model_tensors)

    def check(self, longest: int = 0) -> None:
        """Builds every term. Raises RewardError (or BadInput) for one that cannot be had, or cannot take ``longest`` tokens."""
        for term in self.config.terms:
            if term.name not in self.terms:
                self.terms[term.name] = self._build(term)
            scorer = self.terms[term.name]
            if isinstance(scorer, Scorer):
                scorer.require(longest)

    def _build(self, term: Any) -> Any:
        if isinstance(term, RuleReward):
            return rule(term.rule, term.options)
        if isinstance(term, FunctionReward):
            return UserFunction(term, None if self.prints is None else self.prints / f"{term.name}.txt")
        if isinstance(term, ClassifierReward):
            return ClassifierScorer(term, self.device)
        scorer = LikelihoodScorer if isinstance(term, LikelihoodReward) else ModelScorer
        return scorer(term, self.tokenizer, self.device)

    def keep_awake(self, awake: bool) -> None:
        """Puts the weights of reward models to sleep on the host, or wakes them."""
        self.models.wake() if awake else self.models.sleep()
        release_cached_memory(torch.device(self.device))

    def _model_tensors(self) -> list[torch.Tensor]:
        models = [scorer.model for scorer in self.terms.values() if hasattr(scorer, "model")]
        return [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]

    def score(self, batch: Batch, rows: pa.Table, only: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Columns to add to the batch: reward_parts (B, k), and step_rewards (T,) if a term rewards steps.

        The parts are in the order of the terms named in ``only`` (all of them by default). ``rows`` holds each example
        once: example_id, prompt, and the dataset's other columns.
        """
        self.check()
        prompts, completions, columns = self._texts(batch, rows)
        terms = [t for t in self.config.terms if only is None or t.name in only]
        stepped = {t.name: self.terms[t.name].steps(batch) for t in terms if _by_steps(t)}
        parts = [
            _mean_of_steps(batch, stepped[t.name])
            if t.name in stepped
            else self._score(t, batch, prompts, completions, columns)
            for t in terms
        ]
        columns_to_add = {"reward_parts": np.stack(parts, 1)}
        if stepped:
            columns_to_add["step_rewards"] = sum(t.weight * stepped[t.name] for t in terms if t.name in stepped)
        return columns_to_add

    def judge(self, rows: pa.Table) -> np.ndarray:
        """Scores (n, k) of texts that no policy wrote: columns example_id, prompt, completion, and the dataset's others."""
        self.check()
        if not len(rows):
            return np.zeros((0, len(self.config.terms)), np.float32)
        nothing = from_sequences(
            [np.zeros(0)] * len(rows), prompt_length=np.zeros(len(rows)), example_id=rows["example_id"]
        )
        columns = {name: rows[name].to_pylist() for name in rows.column_names if name not in TAKEN}
        prompts, completions = columns.pop("prompt"), rows["completion"].to_pylist()
        return np.stack([self._score(t, nothing, prompts, completions, columns) for t in self.config.terms], 1)

    def _score(
        self, term: Any, batch: Batch, prompts: list[Any], completions: list[str], columns: dict[str, list[Any]]
    ) -> np.ndarray:
        scorer, ids = self.terms[term.name], batch.example_id.tolist()
        if isinstance(scorer, Scorer):
            return checked(term.name, term.path, scorer(batch, prompts, completions), ids, term.on_error)
        if isinstance(term, FunctionReward):
            answers = [_message(p, c) for p, c in zip(prompts, completions, strict=True)]
            tokens = [t[n:].tolist() for t, n in zip(batch.sequences(), batch.prompt_length, strict=True)]
            return scorer(prompts, answers, ids, completion_ids=tokens, **columns)
        if isinstance(term, ClassifierReward):
            return checked(term.name, term.path, scorer(prompts, completions, **columns), ids, term.on_error)
        try:
            values = scorer(prompts, completions, **columns)
        except Exception as error:
            raise RewardError(
                f"reward '{term.name}' (rule {term.rule}): {type(error).__name__}: {error}; the rule does not fit the "
                f"dataset, which has prompt{''.join(f', {name}' for name in columns)}"
            ) from error
        return checked(term.name, f"rule {term.rule}", values, ids, term.on_error)

    def _texts(self, batch: Batch, rows: pa.Table) -> tuple[list[Any], list[str], dict[str, list[Any]]]:
        """Prompts as the dataset has them, completions as text, and the other columns, a value for each sequence."""
        at = {int(i): n for n, i in enumerate(rows["example_id"].to_pylist())}
        picked = rows.take([at[int(i)] for i in batch.example_id])
        columns = {name: picked[name].to_pylist() for name in picked.column_names if name not in TAKEN}
        sequences = zip(batch.sequences(), batch.prompt_length, strict=True)
        completions = [completion_text(t, int(n), self.tokenizer) for t, n in sequences]
        return columns.pop("prompt"), completions, columns


def _by_steps(term: Any) -> bool:
    return isinstance(term, ModelReward) and term.steps is not None


def _mean_of_steps(batch: Batch, scores: np.ndarray) -> np.ndarray:
    """(B,): what is shown of a process reward; 0 for an answer without a step."""
    total = np.add.reduceat(scores, batch.offsets[:-1])
    return (total / np.maximum(1, np.add.reduceat(scores != 0, batch.offsets[:-1]))).astype(np.float32)


def _message(prompt: Any, completion: str) -> Any:
    """The completion as TRL gives it to a function: text, or to a conversation the assistant's message in a list."""
    return completion if isinstance(prompt, str) else [{"role": "assistant", "content": completion}]
