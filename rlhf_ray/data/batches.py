"""From examples to Batches: language modelling, fine-tuning, preference pairs, labels, prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..batch import Batch, from_sequences
from .examples import DataError, Row, Rows, number, prompt_ids, rendered, side_ids, text_of


class NothingFits(DataError):
    """Every example is too long."""


@dataclass(frozen=True)
class Prepared:
    """A Batch, and how many examples were left out because they are too long."""

    batch: Batch
    dropped: int


@dataclass(frozen=True)
class PreparedPrompts:
    """Token ids of the prompts that are kept, and their rows' indices."""

    tokens: list[np.ndarray]
    ids: list[int]
    dropped: int


def language_model(rows: Rows, tokenizer: Any, max_length: int) -> Prepared:
    """Column text, then the end token; the loss is taken on every token but the first. Longer texts are cut into pieces."""
    eos = _eos(tokenizer)
    pieces, ids = [], []
    for i, row in enumerate(rows):
        rows.require(i, "text")
        whole = [*tokenizer(text_of(row, "text", rows.place(i)))["input_ids"], eos]
        for start in range(0, len(whole), max_length):
            piece = whole[start : start + max_length]
            if len(piece) > 1:
                pieces.append(piece)
                ids.append(i)
    masks = [[0] + [1] * (len(p) - 1) for p in pieces]
    return Prepared(_batch(rows, pieces, masks, ids, np.arange(len(ids))), 0)


def supervised(rows: Rows, tokenizer: Any, max_length: int) -> Prepared:
    """Prompt, completion, end token; the loss is taken on completion and end token. Of ``messages``, on every assistant's turn."""
    sequences, masks, ids = [], [], []
    for i, row in enumerate(rows):
        if "messages" in row:
            rows.require(i, "messages")
            sequence, mask = _turns(row["messages"], tokenizer, rows.place(i))
        else:
            rows.require(i, "prompt", "completion")
            prompt, completion = _sides(row, "completion", tokenizer, rows.place(i))
            sequence, mask = prompt + completion, [0] * len(prompt) + [1] * len(completion)
        if len(sequence) <= max_length:
            sequences.append(sequence)
            masks.append(mask)
            ids.append(i)
    return Prepared(_batch(rows, sequences, masks, ids, np.arange(len(ids))), len(rows) - len(ids))


def translations(rows: Rows, tokenizer: Any, max_length: int) -> Prepared:
    """Source and target (or prompt and completion) for an encoder-decoder, each with its end token and at most ``max_length`` long;
    prompt_length is the source's length, and the loss is taken on the target."""
    sequences, masks, ids = [], [], []
    for i, row in enumerate(rows):
        names = ("prompt", "completion") if "prompt" in row else ("source", "target")
        rows.require(i, *names)
        texts = [text_of(row, name, rows.place(i)) for name in names]
        source, target = side_ids(texts[0], tokenizer), side_ids(texts[1], tokenizer, target=True)
        if max(len(source), len(target)) <= max_length:
            sequences.append(source + target)
            masks.append([0] * len(source) + [1] * len(target))
            ids.append(i)
    return Prepared(_batch(rows, sequences, masks, ids, np.arange(len(ids))), len(rows) - len(ids))


def pairs(rows: Rows, tokenizer: Any, max_length: int) -> Prepared:
    """Two rows a pair, chosen (labels 1, margin) then rejected (0, margin), both ending in the end token.

    A pair is never cut, but dropped. The margin is 0 where there is no such column.
    """
    sequences, masks, ids, labels = [], [], [], []
    for i, row in enumerate(rows):
        rows.require(i, "prompt", "chosen", "rejected")
        if row["chosen"] == row["rejected"]:
            raise DataError(
                f"{rows.place(i)}: chosen and rejected are the same, so there is nothing to prefer; remove the row"
            )
        both = [_sides(row, side, tokenizer, rows.place(i)) for side in ("chosen", "rejected")]
        if max(len(p) + len(c) for p, c in both) <= max_length:
            sequences += [p + c for p, c in both]
            masks += [[0] * len(p) + [1] * len(c) for p, c in both]
            ids += [i, i]
            margin = _margin(row, rows.place(i))
            labels += [[1.0, margin], [0.0, margin]]
    group = np.repeat(np.arange(len(ids) // 2), 2)
    made = _batch(rows, sequences, masks, ids, group, np.array(labels, np.float32))
    return Prepared(made, len(rows) - len(ids) // 2)


def desirable(rows: Rows, tokenizer: Any, max_length: int) -> Prepared:
    """Prompt, completion and end token with label 1 (desirable) or 0, and behind each row a mismatched one of its group.

    That is its prompt with the next example's completion, cut at max_length, and label -1: KTO's reference point comes from it.
    """
    sides, labels, ids = [], [], []
    for i, row in enumerate(rows):
        rows.require(i, "prompt", "completion", "label")
        label = row["label"]
        if str(label).lower() not in ("0", "1", "true", "false"):
            raise DataError(f"{rows.place(i)}: label is {label!r}, expected true or false")
        prompt, completion = _sides(row, "completion", tokenizer, rows.place(i))
        if len(prompt) + len(completion) <= max_length:
            sides.append((prompt, completion))
            labels.append(float(str(label).lower() in ("1", "true")))
            ids.append(i)
    if len(sides) < 2:
        raise DataError(
            f"{rows.source}: fewer than two examples within max_length {max_length}; a mismatched pair needs two"
        )
    sequences, masks = [], []
    for (prompt, completion), (_, other) in zip(sides, [*sides[1:], sides[0]], strict=True):
        for answer in (completion, other[: max_length - len(prompt)]):
            sequences.append(prompt + answer)
            masks.append([0] * len(prompt) + [1] * len(answer))
    made = _batch(
        rows, sequences, masks, np.repeat(ids, 2).tolist(), np.repeat(np.arange(len(ids)), 2),
        np.array([[x] for label in labels for x in (label, -1.0)], np.float32),
    )  # fmt: skip
    return Prepared(made, len(rows) - len(ids))


def labelled(rows: Rows, tokenizer: Any, max_length: int) -> Prepared:
    """Column text (or sentence), end token, and label 0 or 1."""
    sequences, labels, ids = [], [], []
    for i, row in enumerate(rows):
        column = "text" if "text" in row else "sentence"
        rows.require(i, column, "label")
        if str(row["label"]) not in ("0", "1"):
            raise DataError(f"{rows.place(i)}: label is {row['label']!r}, expected 0 or 1")
        whole = [*tokenizer(text_of(row, column, rows.place(i)))["input_ids"], _eos(tokenizer)]
        if len(whole) <= max_length:
            sequences.append(whole)
            labels.append([float(row["label"])])
            ids.append(i)
    masks = [[0] + [1] * (len(s) - 1) for s in sequences]
    made = _batch(rows, sequences, masks, ids, np.arange(len(ids)), np.array(labels, np.float32))
    return Prepared(made, len(rows) - len(ids))


def scored(rows: Rows, tokenizer: Any, max_length: int) -> Prepared:
    """Column text, or prompt and completion, then the end token, and score, a number."""
    sequences, labels, ids = [], [], []
    for i, row in enumerate(rows):
        rows.require(i, "score")
        score = number(row["score"], "score", rows.place(i))
        if "completion" in row:
            rows.require(i, "prompt", "completion")
            prompt, completion = _sides(row, "completion", tokenizer, rows.place(i))
            whole = prompt + completion
        else:
            rows.require(i, "text")
            whole = [*tokenizer(text_of(row, "text", rows.place(i)))["input_ids"], _eos(tokenizer)]
        if len(whole) <= max_length:
            sequences.append(whole)
            labels.append([score])
            ids.append(i)
    masks = [[0] + [1] * (len(s) - 1) for s in sequences]
    made = _batch(rows, sequences, masks, ids, np.arange(len(ids)), np.array(labels, np.float32))
    return Prepared(made, len(rows) - len(ids))


def stepwise(rows: Rows, tokenizer: Any, max_length: int, separator: str) -> Prepared:
    """Prompt and completions, a list of steps that each end in ``separator``; targets are labels (a truth for each step), at the
    steps' last tokens (response_mask). TRL's columns."""
    sequences, masks, targets, ids = [], [], [], []
    for i, row in enumerate(rows):
        rows.require(i, "prompt", "completions", "labels")
        steps, labels = list(row["completions"]), list(row["labels"])
        if len(steps) != len(labels) or not steps:
            raise DataError(f"{rows.place(i)}: {len(steps)} completions and {len(labels)} labels; each step needs one")
        if any(x not in (0, 1, True, False) for x in labels):
            raise DataError(f"{rows.place(i)}: labels is {labels!r}, expected true or false for each step")
        sequence = prompt_ids(row["prompt"], tokenizer, rows.place(i))
        ends = {}
        for step, label in zip(steps, labels, strict=True):
            sequence = sequence + tokenizer(f"{step}{separator}", add_special_tokens=False)["input_ids"]
            ends[len(sequence) - 1] = int(label)
        if len(sequence) <= max_length:
            sequences.append(sequence)
            masks.append([int(j in ends) for j in range(len(sequence))])
            targets.append(np.array([ends.get(j, 0) for j in range(len(sequence))]))
            ids.append(i)
    made = _batch(rows, sequences, masks, ids, np.arange(len(ids)))
    return Prepared(made.replace(targets=np.concatenate(targets)), len(rows) - len(ids))


def rewarded(rows: Rows, tokenizer: Any, max_length: int) -> Prepared:
    """Prompt, completion and end token, with the reward at the last token; or completions, a list of texts that follow each other,
    with rewards, one for each of them at its last token (the end token is the last one's). step_rewards holds them."""
    sequences, masks, rewards, ids = [], [], [], []
    for i, row in enumerate(rows):
        sequence, given = _rewarded(rows, i, row, tokenizer)
        prompt = len(sequence) - len(given)
        if len(sequence) <= max_length:
            sequences.append(sequence)
            masks.append([0] * prompt + [1] * len(given))
            rewards.append(np.array([0.0] * prompt + given, np.float32))
            ids.append(i)
    made = _batch(rows, sequences, masks, ids, np.arange(len(ids)))
    return Prepared(made.replace(step_rewards=np.concatenate(rewards)), len(rows) - len(ids))


def _rewarded(rows: Rows, i: int, row: Row, tokenizer: Any) -> tuple[list[int], list[float]]:
    """Ids of prompt and response, and the reward of each of the response's tokens."""
    if "completions" not in row:
        rows.require(i, "prompt", "completion", "reward")
        prompt, answer = _sides(row, "completion", tokenizer, rows.place(i))
        return prompt + answer, [0.0] * (len(answer) - 1) + [number(row["reward"], "reward", rows.place(i))]
    rows.require(i, "prompt", "completions", "rewards")
    steps, numbers = list(row["completions"]), list(row["rewards"])
    if len(steps) != len(numbers) or not steps:
        raise DataError(f"{rows.place(i)}: {len(steps)} completions and {len(numbers)} rewards; each needs one")
    sequence, given = prompt_ids(row["prompt"], tokenizer, f"{rows.place(i)}, prompt"), list[float]()
    for k, step in enumerate(steps):
        ids = tokenizer(str(step), add_special_tokens=False)["input_ids"]
        ids += [_eos(tokenizer)] if k == len(steps) - 1 else []
        if not ids:
            raise DataError(f"{rows.place(i)}: completions[{k}] is {step!r}, which has no token to bear its reward")
        sequence = sequence + ids
        given += [0.0] * (len(ids) - 1) + [number(numbers[k], f"rewards[{k}]", rows.place(i))]
    return sequence, given


def seeded(batch: Batch, seed: Sequence[int]) -> Batch:
    """The Batch with a seed for each row, a function of ``seed`` and of its example alone."""
    each = [np.random.SeedSequence([*seed, int(i)]).generate_state(1, np.uint64)[0] for i in batch.example_id]
    return batch.replace(seed=np.array(each, np.uint64))


def prompts(rows: Rows, tokenizer: Any, max_length: int, too_long: str, sources: bool = False) -> PreparedPrompts:
    """Token ids of column prompt; longer ones than ``max_length`` are an error, dropped, or cut on the left.

    ``sources``: they are an encoder-decoder's, whole texts with an end token.
    """
    tokens, ids = [], []
    for i, row in enumerate(rows):
        rows.require(i, "prompt")
        if sources:
            ids_of = side_ids(text_of(row, "prompt", rows.place(i)), tokenizer)
        else:
            ids_of = prompt_ids(_filled(row["prompt"], rows.place(i)), tokenizer, rows.place(i))
        if len(ids_of) > max_length and too_long == "error":
            raise DataError(
                f"{rows.place(i)}: the prompt has {len(ids_of)} tokens, more than {rows.option}.max_prompt_tokens {max_length}; "
                f"raise it, or set {rows.option}.too_long to drop or truncate_left"
            )
        if len(ids_of) <= max_length or too_long == "truncate_left":
            tokens.append(np.array(ids_of[-max_length:], dtype=np.int32))
            ids.append(i)
    if not tokens:
        raise DataError(
            f"{rows.source}: all {len(rows)} prompts are longer than {rows.option}.max_prompt_tokens {max_length}; raise it"
        )
    return PreparedPrompts(tokens, ids, len(rows) - len(ids))


def _filled(prompt: Any, where: str) -> Any:
    return text_of({"prompt": prompt}, "prompt", where) if isinstance(prompt, str) else prompt


def _turns(messages: Any, tokenizer: Any, where: str) -> tuple[list[int], list[int]]:
    """Ids of a conversation and the mask of what its assistant says, turn by turn as it would be sampled."""
    if not isinstance(messages, list) or len(messages) < 2:
        raise DataError(f"{where}: column 'messages' is no list of messages that ends with the assistant's answer")
    sequence: list[int] = []
    mask: list[int] = []
    done = ""
    for at in [i for i, m in enumerate(messages) if isinstance(m, dict) and m.get("role") == "assistant" and i]:
        head = rendered(messages[:at], tokenizer, where, prompt=True)
        if not head.startswith(done):
            raise DataError(
                f"{where}: the chat template writes earlier turns otherwise once more follow ('...{done[-20:]}'); "
                "give prompt and completion instead, the last turn alone"
            )
        between = tokenizer(head.removeprefix(done), add_special_tokens=False)["input_ids"]
        row = {"prompt": messages[:at], "messages": messages[at : at + 1]}
        answer = _sides(row, "messages", tokenizer, where)[1]
        sequence += between + answer
        mask += [0] * len(between) + [1] * len(answer)
        done = rendered(messages[: at + 1], tokenizer, where, prompt=False)
        end = str(tokenizer.eos_token)
        if end in done:  # what a template writes after it belongs to the next turn
            done = done[: done.rindex(end) + len(end)]
    if not sequence:
        raise DataError(f"{where}: no message of the assistant follows another; there is nothing to learn")
    return sequence, mask


def _margin(row: Row, where: str) -> float:
    return number(row.get("margin", 0.0), "margin", where)


def _sides(row: Row, column: str, tokenizer: Any, where: str) -> tuple[list[int], list[int]]:
    """Prompt ids, and completion ids with the end token. A conversation is rendered whole and cut where the prompt ends."""
    prompt, answer, eos = row["prompt"], row[column], _eos(tokenizer)
    if not isinstance(answer, list):
        ids = tokenizer(text_of(row, column, where), add_special_tokens=False)["input_ids"]
    else:
        head = rendered(prompt, tokenizer, f"{where}, prompt", prompt=True)
        whole = rendered([*prompt, *answer], tokenizer, f"{where}, {column}", prompt=False)
        if not whole.startswith(head):
            raise DataError(
                f"{where}: the chat template does not begin prompt and {column} as it begins the prompt for generation "
                f"('...{head[-20:]}'); give both as strings, or use a template without such an opening"
            )
        ids = tokenizer(whole.removeprefix(head), add_special_tokens=False)["input_ids"]
        ended = len(ids) - ids[::-1].index(eos) if eos in ids else len(ids)
        if not tokenizer.decode(ids[ended:]).strip():  # a line end after the end token is never sampled
            ids = ids[:ended]
    return prompt_ids(prompt, tokenizer, f"{where}, prompt"), ids if ids and ids[-1] == eos else [*ids, eos]


def _eos(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise DataError(
            "the tokenizer has no eos_token, so no sequence could end; set eos_token in its tokenizer_config.json"
        )
    return int(tokenizer.eos_token_id)


def _batch(
    rows: Rows,
    sequences: list[list[int]],
    masks: list[list[int]],
    ids: list[int],
    group: np.ndarray,
    labels: np.ndarray | None = None,
) -> Batch:
    if not sequences:
        raise NothingFits(f"{rows.source}: every example is longer than max_length; raise it")
    extra = {} if labels is None else {"labels": labels}
    arrays = [np.array(s, dtype=np.int32) for s in sequences]
    leading = np.array([m.index(1) if 1 in m else len(m) for m in masks])
    return from_sequences(
        arrays, response_mask=[np.array(m) for m in masks], group=group, example_id=np.array(ids),
        prompt_length=leading, **extra,
    )  # fmt: skip
