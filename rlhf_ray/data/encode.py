"""From text to token ids: prompts, answers, conversations, texts with their words, and back to text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .files import DataError, Row

NO_WORD = -1  # the word of a token that belongs to none: special tokens


def check_text(value: Any, column: str, place: str) -> str:
    """``value`` if it is a string that is not blank. Raises DataError that names column and place."""
    if not isinstance(value, str):
        raise DataError(f"{place}: column '{column}' is {type(value).__name__}, expected a string")
    if not value.strip():
        raise DataError(f"{place}: column '{column}' is empty; remove the row")
    return value


def end_id(tokenizer: Any) -> int:
    """The id of the end-of-sequence token. Raises DataError if the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise DataError(
            "the tokenizer has no eos_token, so no sequence could end; set eos_token in its tokenizer_config.json"
        )
    return int(tokenizer.eos_token_id)


def text_ids(text: str, tokenizer: Any) -> list[int]:
    """Token ids of a text as the tokenizer encodes it, then the end token."""
    return [*tokenizer(text)["input_ids"], end_id(tokenizer)]


def render(value: Any, tokenizer: Any, place: str, *, prompt: bool) -> str:
    """A string as it is; a list of {role, content} messages through the chat template.

    ``prompt``: the text ends with the header of the assistant's answer. Raises DataError for anything else, and if the
    tokenizer has no chat template.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(m, dict) and {"role", "content"} <= set(m) for m in value):
        raise DataError(f"{place}: neither a string nor a list of messages with role and content")
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"{place}: a conversation, and the tokenizer has no chat template; use an instruct model or plain strings"
        )
    return tokenizer.apply_chat_template(value, tokenize=False, add_generation_prompt=prompt)


def prompt_ids(prompt: Any, tokenizer: Any, place: str, then: str = "") -> list[int]:
    """Token ids of a prompt and the text ``then``. A chat template writes its special tokens itself, so none are added."""
    text = render(prompt, tokenizer, place, prompt=True) + then
    ids: list[int] = tokenizer(text, add_special_tokens=isinstance(prompt, str))["input_ids"]
    return ids


def prompt_and_answer_ids(row: Row, column: str, tokenizer: Any, place: str) -> tuple[list[int], list[int]]:
    """Ids of the row's prompt, and of the answer in ``column`` with the end token.

    A conversation is rendered as a whole and cut at the end of the prompt. Raises DataError if the chat template writes
    the prompt in another way than for generation.
    """
    prompt, answer, eos = row["prompt"], row[column], end_id(tokenizer)
    if not isinstance(answer, list):
        ids = tokenizer(check_text(answer, column, place), add_special_tokens=False)["input_ids"]
    else:
        head = render(prompt, tokenizer, f"{place}, prompt", prompt=True)
        conversation = render([*prompt, *answer], tokenizer, f"{place}, {column}", prompt=False)
        if not conversation.startswith(head):
            raise DataError(
                f"{place}: the chat template does not begin prompt and {column} as it begins the prompt for generation "
                f"('...{head[-20:]}'); give both as strings, or use a template without such an opening"
            )
        ids = tokenizer(conversation.removeprefix(head), add_special_tokens=False)["input_ids"]
        end = len(ids) - ids[::-1].index(eos) if eos in ids else len(ids)
        if not tokenizer.decode(ids[end:]).strip():  # a line end after the end token is never sampled
            ids = ids[:end]
    answer_ids = ids if ids and ids[-1] == eos else [*ids, eos]
    return prompt_ids(prompt, tokenizer, f"{place}, prompt"), answer_ids


def side_ids(text: str, tokenizer: Any, target: bool = False) -> list[int]:
    """Token ids of an encoder-decoder's source, or of its ``target``, as the tokenizer encodes it, with an end token."""
    ids: list[int] = (tokenizer(text_target=text) if target else tokenizer(text))["input_ids"]
    return ids if tokenizer.eos_token_id in ids[-2:] else [*ids, tokenizer.eos_token_id]  # a language code may be last


def completion_text(tokens: Any, prompt_length: int, tokenizer: Any) -> str:
    """The text after the prompt of a sequence (T,). It is decoded together with the prompt, which keeps a leading space."""
    prompt = tokenizer.decode(tokens[:prompt_length], skip_special_tokens=True)
    text: str = tokenizer.decode(tokens, skip_special_tokens=True)
    if text.startswith(prompt):
        return text[len(prompt) :]
    rest: str = tokenizer.decode(tokens[prompt_length:], skip_special_tokens=True)
    return rest


@dataclass(frozen=True, kw_only=True)
class EncodedText:
    """Tokens of one text or of two, with special tokens around them."""

    ids: list[int]
    words: list[int]
    """The word of its text that each token belongs to, or NO_WORD."""
    second: int
    """Where the second text begins; of one text, the number of tokens."""
    characters: np.ndarray
    """(n, 2): the characters [start, end) of its text that each token covers."""


def encode_text(tokenizer: Any, *texts: str) -> EncodedText:
    """One text or two with the tokenizer's special tokens.

    If the tokenizer adds none, the sequence begins with [CLS] or the beginning token, if there is one, and each text
    ends with [SEP] or the end token.
    """
    encoding = tokenizer(*texts, return_offsets_mapping=True)
    ids, characters = list(encoding["input_ids"]), list(encoding["offset_mapping"])
    words = [NO_WORD if w is None else w for w in encoding.word_ids()]
    texts_of_tokens = encoding.sequence_ids()
    second = texts_of_tokens.index(1) if 1 in texts_of_tokens else len(ids)
    if NO_WORD not in words:
        begin, end = tokenizer.cls_token_id, tokenizer.sep_token_id
        begin = tokenizer.bos_token_id if begin is None else begin
        end = tokenizer.eos_token_id if end is None else end
        head, middle, tail = [] if begin is None else [begin], [end] if len(texts) == 2 else [], [end]

        def surround(values: list[Any], special: list[list[Any]]) -> list[Any]:
            return [*special[0], *values[:second], *special[1], *values[second:], *special[2]]

        marks = [head, middle, tail]
        ids = surround(ids, marks)
        words = surround(words, [[NO_WORD] * len(m) for m in marks])
        characters = surround(characters, [[(0, 0)] * len(m) for m in marks])
        second = second + len(head) + len(middle) if len(texts) == 2 else len(ids)
    return EncodedText(ids=ids, words=words, second=second, characters=np.array(characters).reshape(-1, 2))
