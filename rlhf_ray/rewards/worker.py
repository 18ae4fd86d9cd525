"""RewardWorker: scores rollouts by the terms of a job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from ..batch import Batch, from_sequences
from ..config import ModelConfig, RewardsConfig
from ..data.encode import completion_text
from ..data.tokenizer import load_tokenizer
from ..models.offload import HostOffload, release_cached_memory
from .registry import build_scorer
from .reward import Samples, ScorerContext, TermScorer

# columns that a function cannot get: the names mean something else, as with TRL
RESERVED_COLUMNS = ("example_id", "prompts", "completions", "completion", "completion_ids")


class RewardWorker:
    """Holds the terms of a job. It has no state besides them.

    ``tokenizer`` is the policy's, if there is one; ``prints`` a directory for what functions print. :meth:`check` builds
    the terms, so that what is wrong shows before any rollout.
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
        self.config = config
        self.tokenizer = None if tokenizer is None else load_tokenizer(ModelConfig(path=tokenizer), tokenizer)
        directory = None if prints is None else Path(prints)
        self.context = ScorerContext(tokenizer=self.tokenizer, device=device, prints=directory)
        self.scorers: dict[str, TermScorer] = {}
        self.models = HostOffload(self._model_tensors)

    def check(self, max_tokens: int = 0) -> None:
        """Builds every term. Raises RewardError (or BadInput) if one cannot be had, or cannot take ``max_tokens``."""
        for term in self.config.terms:
            if term.name not in self.scorers:
                self.scorers[term.name] = build_scorer(term, self.context)
            self.scorers[term.name].require(max_tokens)

    def keep_awake(self, awake: bool) -> None:
        """Puts the weights of reward models to sleep on the host, or wakes them."""
        self.models.wake() if awake else self.models.sleep()
        release_cached_memory(torch.device(self.context.device))

    def _model_tensors(self) -> list[torch.Tensor]:
        models = [scorer.model for scorer in self.scorers.values() if scorer.model is not None]
        return [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]

    def score(self, batch: Batch, rows: pa.Table, only: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Columns to add to the batch: reward_parts (B, k), and step_rewards (T,) if a term rewards steps.

        The parts are in the order of the terms named in ``only`` (all of them by default). ``rows`` holds each example
        once: example_id, prompt, and the dataset's other columns.
        """
        self.check()
        samples = self._samples(batch, rows)
        parts, weighted_steps = [], []
        for term in self.config.terms:
            if only is not None and term.name not in only:
                continue
            scorer = self.scorers[term.name]
            step_scores = scorer.steps(batch)
            if step_scores is None:
                parts.append(scorer.score(samples))
            else:
                parts.append(_mean_of_steps(batch, step_scores))
                weighted_steps.append(term.weight * step_scores)
        columns_to_add = {"reward_parts": np.stack(parts, 1)}
        if weighted_steps:
            columns_to_add["step_rewards"] = np.sum(weighted_steps, 0)
        return columns_to_add

    def judge(self, rows: pa.Table) -> np.ndarray:
        """Scores (n, k) of texts that no policy wrote; columns example_id, prompt, completion and the dataset's others."""
        self.check()
        if not len(rows):
            return np.zeros((0, len(self.config.terms)), np.float32)
        without_tokens = from_sequences(
            [np.zeros(0)] * len(rows), prompt_length=np.zeros(len(rows)), example_id=rows["example_id"]
        )
        columns = {name: rows[name].to_pylist() for name in rows.column_names if name not in RESERVED_COLUMNS}
        prompts, completions = columns.pop("prompt"), rows["completion"].to_pylist()
        samples = Samples(batch=without_tokens, prompts=prompts, completions=completions, columns=columns)
        return np.stack([self.scorers[term.name].score(samples) for term in self.config.terms], 1)

    def _samples(self, batch: Batch, rows: pa.Table) -> Samples:
        """Prompts as the dataset has them, completions as text, and the other columns, a value for each sequence."""
        row_of = {int(example): row for row, example in enumerate(rows["example_id"].to_pylist())}
        examples = rows.take([row_of[int(example)] for example in batch.example_id])
        columns = {name: examples[name].to_pylist() for name in examples.column_names if name not in RESERVED_COLUMNS}
        sequences = zip(batch.sequences(), batch.prompt_length, strict=True)
        completions = [completion_text(tokens, int(length), self.tokenizer) for tokens, length in sequences]
        return Samples(batch=batch, prompts=columns.pop("prompt"), completions=completions, columns=columns)


def _mean_of_steps(batch: Batch, step_scores: np.ndarray) -> np.ndarray:
    """(B,): the part that a process reward shows; 0 for an answer without a step."""
    total = np.add.reduceat(step_scores, batch.offsets[:-1])
    return (total / np.maximum(1, np.add.reduceat(step_scores != 0, batch.offsets[:-1]))).astype(np.float32)
