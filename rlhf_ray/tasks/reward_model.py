"""Reward models: from preference pairs, labels, scores, or the steps of a reasoning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..algorithms import losses
from ..batch import Batch
from ..config import RewardJob
from ..data.encode import prompt_and_answer_ids, prompt_ids, text_ids
from ..data.examples import DataError, Rows
from ..data.prepared import Example, Prepared, prepare_rows
from ..data.stream import Stream
from ..learner.objectives import Columns, Loss, PerPair, PerRow, PerToken, final_positions
from ..quality.reward_model import report
from .base import Judge, Task, TaskData, TaskKind, prepare_data
from .preference import prepare_pairs


class FinalScores:
    """Predictions of a reward model that scores whole sequences."""

    def predict(self, model: Any, batch: Batch, device: torch.device) -> list[np.ndarray]:
        """The score () of each sequence, read at its last token."""
        return list(final_scores(model, Columns(batch, device)).cpu().numpy())


def final_scores(model: Any, c: Columns) -> Tensor:
    """(B,) float32, read at each sequence's last token; the prompt of a group is computed once."""
    scores: Tensor = model(c.tokens, c.lengths, final_positions(c.lengths), c.shared_prompts)
    return scores


@dataclass(frozen=True)
class PairwiseObjective(FinalScores, PerPair):
    """Bradley-Terry on preference pairs."""

    centre_coef: float = 0.0

    def loss(self, model: Any, batch: Batch, device: torch.device) -> Loss:
        """Summed over pairs."""
        c = Columns(batch, device)
        return losses.bradley_terry(final_scores(model, c), c.labels[:, 0], c.group, c.labels[:, 1], self.centre_coef)


@dataclass(frozen=True)
class RowObjective(FinalScores, PerRow):
    """A loss of each row's score and label: cross-entropy of labels 0 and 1 (the logit is the reward), or squared error."""

    name: Literal["labelled", "scores"]

    def loss(self, model: Any, batch: Batch, device: torch.device) -> Loss:
        """Summed over rows."""
        c = Columns(batch, device)
        return ROW_LOSSES[self.name](model(c.tokens, c.lengths, final_positions(c.lengths)), c.labels[:, 0])


ROW_LOSSES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, losses.Metrics]]] = {
    "labelled": losses.binary_cross_entropy,
    "scores": losses.squared_error,
}


@dataclass(frozen=True)
class StepObjective(PerToken):
    """Cross-entropy of ``targets`` 0 and 1 at the ends of steps (response_mask): a process reward model.

    Lightman et al. 2023, arXiv 2305.20050; the logit is the step's reward.
    """

    def loss(self, model: Any, batch: Batch, device: torch.device) -> Loss:
        """Summed over steps."""
        c = Columns(batch, device)
        return losses.binary_cross_entropy(model(c.tokens, c.lengths, c.sampled), c.targets[c.sampled].float())


def prepare_labelled(rows: Rows, tokenizer: Any, max_length: int) -> Prepared:
    """Column text (or sentence), end token, and label 0 or 1."""

    def encode_row(rows: Rows, index: int) -> list[Example]:
        row, place = rows[index], rows.place(index)
        column = "text" if "text" in row else "sentence"
        rows.require(index, column, "label")
        if str(row["label"]) not in ("0", "1"):
            raise DataError(f"{place}: label is {row['label']!r}, expected 0 or 1")
        return [Example.of_text(text_ids(rows.text(index, column), tokenizer), labels=[float(row["label"])])]

    return prepare_rows(rows, encode_row, max_length)


def prepare_scored(rows: Rows, tokenizer: Any, max_length: int) -> Prepared:
    """Column text, or prompt and completion, then the end token; and score, a number."""

    def encode_row(rows: Rows, index: int) -> list[Example]:
        row, place = rows[index], rows.place(index)
        score = rows.number(index, "score")
        if "completion" in row:
            rows.require(index, "prompt", "completion")
            prompt, answer = prompt_and_answer_ids(row, "completion", tokenizer, place)
            ids = prompt + answer
        else:
            ids = text_ids(rows.text(index, "text"), tokenizer)
        return [Example.of_text(ids, labels=[score])]

    return prepare_rows(rows, encode_row, max_length)


def prepare_steps(rows: Rows, tokenizer: Any, max_length: int, separator: str) -> Prepared:
    """Prompt and completions, a list of steps that each end in ``separator``, with labels, a truth for each step.

    ``targets`` are the labels, at the steps' last tokens (response_mask). The columns are TRL's.
    """

    def encode_row(rows: Rows, index: int) -> list[Example]:
        row, place = rows[index], rows.place(index)
        rows.require(index, "prompt", "completions", "labels")
        steps, labels = list(row["completions"]), list(row["labels"])
        if len(steps) != len(labels) or not steps:
            raise DataError(f"{place}: {len(steps)} completions and {len(labels)} labels; each step needs one")
        if any(label not in (0, 1, True, False) for label in labels):
            raise DataError(f"{place}: labels is {labels!r}, expected true or false for each step")
        tokens = prompt_ids(row["prompt"], tokenizer, place)
        label_at = {}
        for step, label in zip(steps, labels, strict=True):
            tokens = tokens + tokenizer(f"{step}{separator}", add_special_tokens=False)["input_ids"]
            label_at[len(tokens) - 1] = int(label)
        positions = range(len(tokens))
        targets = [label_at.get(i, 0) for i in positions]
        return [Example(tokens=tokens, mask=[int(i in label_at) for i in positions], columns={"targets": targets})]

    return prepare_rows(rows, encode_row, max_length)


def judge_scores(data: TaskData, *, paired: bool) -> Judge | None:
    """The judge of a reward model's scores on held-out rows."""
    heldout = data.heldout
    if heldout is None:
        return None
    return lambda scores: report(heldout, np.array(scores), paired)


def build_pairwise(job: RewardJob, rows: Rows | Stream, heldout: Rows | None, tokenizer: Any) -> Task:
    """From preference pairs."""
    data = prepare_data(job, prepare_pairs, rows, heldout, tokenizer)
    objective = PairwiseObjective(centre_coef=job.centre_coef)
    return Task(objective=objective, data=data, judge=judge_scores(data, paired=True))


def build_labelled(job: RewardJob, rows: Rows | Stream, heldout: Rows | None, tokenizer: Any) -> Task:
    """From labels 0 and 1."""
    data = prepare_data(job, prepare_labelled, rows, heldout, tokenizer)
    return Task(objective=RowObjective("labelled"), data=data, judge=judge_scores(data, paired=False))


def build_scored(job: RewardJob, rows: Rows | Stream, heldout: Rows | None, tokenizer: Any) -> Task:
    """From scores."""
    return Task(objective=RowObjective("scores"), data=prepare_data(job, prepare_scored, rows, heldout, tokenizer))


def build_steps(job: RewardJob, rows: Rows | Stream, heldout: Rows | None, tokenizer: Any) -> Task:
    """A process reward model, from the steps of a reasoning."""
    prepare = partial(prepare_steps, separator=job.separator)
    return Task(objective=StepObjective(), data=prepare_data(job, prepare, rows, heldout, tokenizer))


PAIRWISE = TaskKind(model="scalar", build=build_pairwise)
LABELLED = TaskKind(model="scalar", build=build_labelled)
SCORED = TaskKind(model="scalar", build=build_scored)
STEPS = TaskKind(model="scalar", build=build_steps)
