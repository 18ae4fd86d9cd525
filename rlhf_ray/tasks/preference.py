"""Preference optimisation without sampling: DPO, IPO, ORPO and SimPO on pairs, KTO on single answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..algorithms import losses, preferences
from ..algorithms.advantages import sequence_mean, sequence_sum
from ..batch import Batch
from ..config import KTO, PreferenceJob
from ..config.preferences import PreferenceConfig
from ..data.encode import prompt_and_answer_ids
from ..data.examples import DataError, Rows, check_number
from ..data.prepared import Example, Prepared, fitting_rows, prepare_rows, to_prepared
from ..learner.objectives import Columns, Loss, Objective, PerPair, PerRow
from .base import LogProbs, Task, TaskKind, prepare_data


@dataclass(frozen=True, kw_only=True)
class PairLoss:
    """What one loss on pairs compares."""

    loss: Callable[[Any, Tensor, Tensor], Loss]
    """(config, scores of the chosen sides, scores of the rejected sides), both (pairs,) -> the loss, summed over pairs."""
    score: Callable[[Tensor, Columns], Tensor]
    """(log-probs (T,), columns) -> (B,) the score of each side."""
    reads_reference: bool
    """Whether the log-probs are relative to the reference's."""


def _sum_of_tokens(log_probs: Tensor, c: Columns) -> Tensor:
    return sequence_sum(log_probs, c.lengths)


def _mean_of_tokens(log_probs: Tensor, c: Columns) -> Tensor:
    return sequence_mean(log_probs, c.response_mask, c.lengths)


PAIR_LOSSES: dict[str, PairLoss] = {
    "dpo": PairLoss(
        loss=lambda a, chosen, rejected: preferences.dpo(chosen, rejected, a.beta, a.label_smoothing),
        score=_sum_of_tokens,
        reads_reference=True,
    ),
    "ipo": PairLoss(
        loss=lambda a, chosen, rejected: preferences.ipo(chosen, rejected, a.beta),
        score=_mean_of_tokens,
        reads_reference=True,
    ),
    "orpo": PairLoss(
        loss=lambda a, chosen, rejected: preferences.orpo(chosen, rejected, a.beta),
        score=_mean_of_tokens,
        reads_reference=False,
    ),
    "simpo": PairLoss(
        loss=lambda a, chosen, rejected: preferences.simpo(chosen, rejected, a.beta, a.margin),
        score=_mean_of_tokens,
        reads_reference=False,
    ),
}
"""By ``objective.type``."""


@dataclass(frozen=True)
class PairObjective(PerPair):
    """A loss of PAIR_LOSSES on pairs: the chosen and the rejected row share a group."""

    config: PreferenceConfig

    def loss(self, model: Any, batch: Batch, device: torch.device) -> Loss:
        """Summed over pairs."""
        c, pair_loss = Columns(batch, device), PAIR_LOSSES[self.config.type]
        log_probs = response_log_probs(model, c)
        if pair_loss.reads_reference:
            log_probs = log_probs - c.ref_log_probs
        score = pair_loss.score(log_probs, c)
        chosen, rejected = (score[rows] for rows in losses.sides(c.labels[:, 0], c.group))
        return pair_loss.loss(self.config, chosen, rejected)


@dataclass(frozen=True)
class DesirableObjective(PerRow):
    """KTO on single answers, labels 1 (desirable) or 0. ``reference_point`` is the step's, over all ranks."""

    config: KTO
    reference_point: float = 0.0

    def loss(self, model: Any, batch: Batch, device: torch.device) -> Loss:
        """Summed over rows."""
        c, a = Columns(batch, device), self.config
        ratio = sequence_sum(response_log_probs(model, c) - c.ref_log_probs, c.lengths)
        point = self.reference_point
        total, metrics = preferences.kto(ratio, c.labels[:, 0], a.beta, point, a.desirable_weight, a.undesirable_weight)
        return total, metrics | {"preference/reference_point": (point * len(batch), float(len(batch)))}


def response_log_probs(model: Any, c: Columns) -> Tensor:
    """Log-probs (T,) of the response's tokens, 0 elsewhere."""
    return c.spread(model(c.tokens, c.lengths, c.sampled, 1.0, False, c.shared_prompts)[0])


def log_ratios(batch: Batch) -> Tensor:
    """(B,) log of policy over reference, summed over each response; reads old_log_probs and ref_log_probs."""
    return sequence_sum(torch.tensor(batch.old_log_probs - batch.ref_log_probs), torch.tensor(batch.lengths))


def prepare_pairs(rows: Rows, tokenizer: Any, max_length: int) -> Prepared:
    """Two rows a pair, chosen (labels 1, margin) then rejected (0, margin), both with the end token.

    A pair is never cut, but left out. The margin is 0 if there is no such column.
    """

    def encode_row(rows: Rows, index: int) -> list[Example]:
        row, place = rows[index], rows.place(index)
        rows.require(index, "prompt", "chosen", "rejected")
        if row["chosen"] == row["rejected"]:
            raise DataError(f"{place}: chosen and rejected are the same, so there is nothing to prefer; remove the row")
        sides = [prompt_and_answer_ids(row, column, tokenizer, place) for column in ("chosen", "rejected")]
        margin = check_number(row.get("margin", 0.0), "margin", place)
        return [
            Example.of_answer(prompt, answer, labels=[label, margin])
            for (prompt, answer), label in zip(sides, (1.0, 0.0), strict=True)
        ]

    return prepare_rows(rows, encode_row, max_length, together=True)


def prepare_desirable(rows: Rows, tokenizer: Any, max_length: int) -> Prepared:
    """Prompt, completion and end token with label 1 (desirable) or 0; after each row a mismatched one of its group.

    The mismatched row has label -1. It is the prompt with the next example's completion, cut at ``max_length``. KTO's
    reference point is estimated on these rows.
    """

    def encode_row(rows: Rows, index: int) -> list[Example]:
        row, place = rows[index], rows.place(index)
        rows.require(index, "prompt", "completion", "label")
        label = str(row["label"]).lower()
        if label not in ("0", "1", "true", "false"):
            raise DataError(f"{place}: label is {row['label']!r}, expected true or false")
        prompt, answer = prompt_and_answer_ids(row, "completion", tokenizer, place)
        return [Example.of_answer(prompt, answer, labels=[float(label in ("1", "true"))])]

    kept = fitting_rows(rows, encode_row, max_length)
    if len(kept) < 2:
        raise DataError(
            f"{rows.source}: fewer than two examples within max_length {max_length}; a mismatched pair needs two"
        )
    matched = [example for _, (example,) in kept]
    groups = []
    for (index, (example,)), following in zip(kept, [*matched[1:], matched[0]], strict=True):
        prompt = list(example.tokens[: example.leading])
        answer = list(following.tokens[following.leading :])[: max_length - len(prompt)]
        groups.append((index, [example, Example.of_answer(prompt, answer, labels=[-1.0])]))
    return to_prepared(rows, groups, together=True)


def build_pairs(job: PreferenceJob, rows: Rows, heldout: Rows | None, tokenizer: Any) -> Task:
    """DPO, IPO, ORPO or SimPO."""
    return Task(
        objective=PairObjective(job.objective),
        data=prepare_data(job, prepare_pairs, rows, heldout, tokenizer),
        reads_reference=PAIR_LOSSES[job.objective.type].reads_reference,
    )


def build_desirable(job: PreferenceJob, rows: Rows, heldout: Rows | None, tokenizer: Any) -> Task:
    """KTO."""
    assert isinstance(job.objective, KTO)
    objective = DesirableObjective(job.objective)

    def with_reference_point(batch: Batch, log_probs: LogProbs) -> tuple[Objective, np.ndarray]:
        """Rows come in twos, matched then mismatched. The mismatched ones give the step's reference point."""
        rows = np.arange(len(batch))
        matched, mismatched = rows[0::2], rows[1::2]
        point = preferences.reference_point(log_ratios(log_probs(batch.take(mismatched))))
        return replace(objective, reference_point=point), matched

    data = prepare_data(job, prepare_desirable, rows, heldout, tokenizer)
    return Task(objective=objective, data=data, reads_reference=True, resolve=with_reference_point)


PAIRS = TaskKind(model="policy", build=build_pairs)
DESIRABLE = TaskKind(model="policy", build=build_desirable)
