"""Implicit language Q-learning: values of tokens, learnt offline from recorded answers and their rewards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from ..algorithms import losses, values
from ..algorithms.losses import metric
from ..batch import Batch
from ..config import ILQLJob
from ..data.encode import end_id, prompt_and_answer_ids, prompt_ids
from ..data.examples import DataError, Rows, check_number
from ..data.prepared import Example, Prepared, prepare_rows
from ..learner.objectives import Columns, Loss, PerToken
from ..learner.worker import Role
from .base import Task, TaskKind, prepare_data


@dataclass(frozen=True, kw_only=True)
class ImplicitQObjective(PerToken):
    """Both Q heads' TD errors and conservative terms, V's expectile loss, and the language model's cross-entropy.

    Snell et al. 2022, arXiv 2206.11871. With ``behaviour_coef`` 0 the language model is frozen and its head is not run.
    """

    gamma: float
    expectile: float
    conservative_coef: float
    behaviour_coef: float

    def loss(self, model: Any, batch: Batch, device: torch.device) -> Loss:
        """Summed over response tokens."""
        c = Columns(batch, device)
        estimates = model(c.tokens, c.lengths, c.sampled, self.behaviour_coef > 0)
        v, target_q = c.spread(estimates.values), c.spread(estimates.target_q)
        td_targets = values.td_targets(c.step_rewards, v, c.response_mask, c.lengths, self.gamma)
        total, metrics = values.expectile_loss(v, target_q, c.response_mask, self.expectile)
        td_loss, td_metrics = values.squared_td_error(c.spread(estimates.q), td_targets, c.response_mask)
        push, push_metrics = values.conservative_loss(c.spread(estimates.q_log_softmax), c.response_mask)
        total = total + td_loss + self.conservative_coef * push
        metrics |= td_metrics | push_metrics
        if estimates.log_probs is not None:
            ones = torch.ones_like(estimates.log_probs, dtype=torch.bool)
            cross_entropy, language_metrics = losses.cross_entropy(estimates.log_probs, ones)
            total = total + self.behaviour_coef * cross_entropy
            metrics |= language_metrics
        metrics |= {"value/q": metric(target_q, c.response_mask), "value/v": metric(v, c.response_mask)}
        return total, metrics


def prepare(rows: Rows, tokenizer: Any, max_length: int) -> Prepared:
    """Prompt, completion and end token, with the reward at the last token; step_rewards holds it.

    Or completions, a list of texts that follow each other, with rewards, one for each text at its last token. The end
    token belongs to the last text.
    """

    def encode_row(rows: Rows, index: int) -> list[Example]:
        row, place = rows[index], rows.place(index)
        if "completions" not in row:
            rows.require(index, "prompt", "completion", "reward")
            prompt, answer = prompt_and_answer_ids(row, "completion", tokenizer, place)
            reward = check_number(row["reward"], "reward", place)
            return [_example(prompt, [answer], [reward])]
        rows.require(index, "prompt", "completions", "rewards")
        steps, rewards = list(row["completions"]), list(row["rewards"])
        if len(steps) != len(rewards) or not steps:
            raise DataError(f"{place}: {len(steps)} completions and {len(rewards)} rewards; each needs one")
        prompt = prompt_ids(row["prompt"], tokenizer, f"{place}, prompt")
        ids = [tokenizer(str(step), add_special_tokens=False)["input_ids"] for step in steps]
        ids[-1] = [*ids[-1], end_id(tokenizer)]
        for k, step in enumerate(steps):
            if not ids[k]:
                raise DataError(f"{place}: completions[{k}] is {step!r}, which has no token for its reward")
        return [_example(prompt, ids, [check_number(r, f"rewards[{k}]", place) for k, r in enumerate(rewards)])]

    return prepare_rows(rows, encode_row, max_length)


def _example(prompt: list[int], steps: list[list[int]], rewards: list[float]) -> Example:
    """The steps after the prompt, each with its reward at its last token."""
    step_rewards = [0.0] * len(prompt)
    for ids, reward in zip(steps, rewards, strict=True):
        step_rewards += [0.0] * (len(ids) - 1) + [reward]
    return Example.of_answer(prompt, [token for ids in steps for token in ids], step_rewards=step_rewards)


def build(job: ILQLJob, rows: Rows, heldout: Rows | None, tokenizer: Any) -> Task:
    """Values of a language model's tokens."""
    objective = ImplicitQObjective(
        gamma=job.gamma,
        expectile=job.expectile,
        conservative_coef=job.conservative_coef,
        behaviour_coef=job.behaviour_coef,
    )
    return Task(objective=objective, data=prepare_data(job, prepare, rows, heldout, tokenizer))


def adapt_role(job: ILQLJob, role: Role) -> Role:
    """Target heads follow the Q heads; without a behaviour loss the language model is frozen."""
    return replace(role, frozen_trunk=job.behaviour_coef == 0, target_rate=job.target_rate)


ILQL = TaskKind(model="values", build=build, adapt_role=adapt_role)
