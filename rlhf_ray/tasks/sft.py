"""Supervised fine-tuning on prompts with answers, or on conversations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..batch import Batch
from ..config import SFTJob
from ..data.encode import prompt_and_answer_ids, render
from ..data.examples import DataError, Rows
from ..data.prepared import Example, Prepared, prepare_rows
from ..data.stream import Stream
from .base import Task, TaskKind, prepare_data
from .language_model import LanguageModelObjective


def prepare(rows: Rows, tokenizer: Any, max_length: int) -> Prepared:
    """Prompt, completion, end token, with the loss on completion and end token; or ``messages``.

    Of ``messages`` the loss is on every answer of the assistant.
    """

    def encode_row(rows: Rows, index: int) -> list[Example]:
        row, place = rows[index], rows.place(index)
        if "messages" in row:
            rows.require(index, "messages")
            return [conversation(row["messages"], tokenizer, place)]
        rows.require(index, "prompt", "completion")
        return [Example.of_answer(*prompt_and_answer_ids(row, "completion", tokenizer, place))]

    return prepare_rows(rows, encode_row, max_length)


def conversation(messages: Any, tokenizer: Any, place: str) -> Example:
    """A conversation with each answer of the assistant as it would be sampled, and the loss on these answers.

    Turn by turn: the text between the previous answer and the next one is rendered up to the header of that answer.

        rendered       <user> a <assistant> b <end> \\n <user> c <assistant> d <end> \\n
        response_mask     0   0      0      1   1    0    0   0      0      1   1
    """
    if not isinstance(messages, list) or len(messages) < 2:
        raise DataError(
            f"{place}: column 'messages' is not a list of two or more messages; it must end with an answer of the assistant"
        )
    tokens: list[int] = []
    mask: list[int] = []
    previous = ""  # what is rendered up to the end of the answer before
    answers = [i for i, m in enumerate(messages) if i and isinstance(m, dict) and m.get("role") == "assistant"]
    for i in answers:
        head = render(messages[:i], tokenizer, place, prompt=True)
        if not head.startswith(previous):
            raise DataError(
                f"{place}: the chat template writes earlier turns otherwise once more follow ('...{previous[-20:]}'); "
                "give prompt and completion instead, the last turn alone"
            )
        between = tokenizer(head.removeprefix(previous), add_special_tokens=False)["input_ids"]
        row = {"prompt": messages[:i], "messages": messages[i : i + 1]}
        answer = prompt_and_answer_ids(row, "messages", tokenizer, place)[1]
        tokens += between + answer
        mask += [0] * len(between) + [1] * len(answer)
        previous = render(messages[: i + 1], tokenizer, place, prompt=False)
        end = str(tokenizer.eos_token)
        if end in previous:  # what a template writes after it belongs to the next turn
            previous = previous[: previous.rindex(end) + len(end)]
    if not tokens:
        raise DataError(f"{place}: no message of the assistant follows another; there is nothing to learn")
    return Example(tokens=tokens, mask=mask)


def seed_rows(batch: Batch, seed: Sequence[int]) -> Batch:
    """The Batch with a seed (B,) for each row, a function of ``seed`` and of its example alone."""
    seeds = [np.random.SeedSequence([*seed, int(i)]).generate_state(1, np.uint64)[0] for i in batch.example_id]
    return batch.replace(seed=np.array(seeds, np.uint64))


def build(job: SFTJob, rows: Rows | Stream, heldout: Rows | None, tokenizer: Any) -> Task:
    """Fine-tuning, with noise on the embeddings (NEFTune) if the job asks for it."""
    return Task(
        objective=LanguageModelObjective(neftune_alpha=job.neftune_alpha),
        data=prepare_data(job, prepare, rows, heldout, tokenizer),
        view=seed_rows if job.neftune_alpha else None,
        perplexity=True,
    )


SFT = TaskKind(model="policy", build=build)
