"""Prompts: which are kept, dropped or cut, and what is said of those that cannot be used."""

import numpy as np
import pytest

from rlhf_ray.data.examples import DataError
from rlhf_ray.data.prompts import encode_prompts
from rlhf_ray.toy import world as toy
from tests.unit.tasks.helpers import PROMPT, rows


@pytest.fixture
def tokenizer():
    return toy.tokenizer()


@pytest.mark.parametrize(
    ("too_long", "tokens_by_row"),
    [("drop", {1: ["the"]}), ("truncate_left", {0: [":"], 1: ["the"]})],
)
def test_long_prompts_are_dropped_or_lose_their_beginning(tokenizer, too_long, tokens_by_row):
    by_row = encode_prompts(rows({"prompt": PROMPT}, {"prompt": "the"}), tokenizer, 1, too_long)
    assert {i: tokenizer.convert_ids_to_tokens(t.tolist()) for i, t in by_row.items()} == tokens_by_row
    assert {t.dtype for t in by_row.values()} == {np.dtype(np.int32)}


def test_a_long_prompt_is_an_error_that_names_row_and_remedy(tokenizer):
    with pytest.raises(
        DataError,
        match=r"x.jsonl:2: the prompt has 5 tokens.*evaluate.data.max_prompt_tokens 4.*evaluate.data.too_long to drop",
    ):
        encode_prompts(rows({"prompt": "the"}, {"prompt": PROMPT}, option="evaluate.data"), tokenizer, 4, "error")
    with pytest.raises(DataError, match="all 1 prompts are longer"):
        encode_prompts(rows({"prompt": PROMPT}), tokenizer, 4, "drop")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": " "}, "x.jsonl:1: column 'prompt' is empty"),
        ({"prompt": 3}, "x.jsonl:1: neither a string nor a list"),
        ({"text": "a"}, r"x.jsonl:1: no column 'prompt' \(it has text\); .* evaluate.data.columns"),
    ],
)
def test_an_unusable_prompt_is_an_error(tokenizer, row, message):
    with pytest.raises(DataError, match=message):
        encode_prompts(rows(row, option="evaluate.data"), tokenizer, 9, "drop")
