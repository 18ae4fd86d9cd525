"""Texts with the special tokens that their tokenizer, or we, put around them."""

import pytest

from rlhf_ray.data.encode import check_text, encode_text, render
from rlhf_ray.data.examples import DataError
from rlhf_ray.toy import world as toy
from tests.unit.tasks.helpers import wordpiece

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<go>{% endif %}"
)


def test_a_sequence_has_the_tokenizers_special_tokens_or_bos_and_eos():
    ours = encode_text(toy.tokenizer(), "the view was great")
    assert toy.tokenizer().decode(ours.ids) == "<bos> the view was great <eos>"
    assert ours.words == [-1, 0, 1, 2, 3, -1]
    pair = encode_text(toy.tokenizer(), "the view", "was great")
    assert toy.tokenizer().decode(pair.ids) == "<bos> the view <eos> was great <eos>"
    assert pair.second == 4
    theirs = encode_text(wordpiece(), "who wrote", "ann lee")
    assert wordpiece().decode(theirs.ids) == "[CLS] who wrote [SEP] ann lee [SEP]"
    assert (theirs.second, theirs.words[0], theirs.words[-1]) == (4, -1, -1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "column 'prompt' is int, expected a string"),
        (None, "is NoneType"),
        (" \n", "column 'prompt' is empty; remove"),
    ],
)
def test_a_text_is_a_string_with_something_in_it(value, message):
    with pytest.raises(DataError, match=message):
        check_text(value, "prompt", "x:1")


def test_conversations_go_through_the_template_and_strings_do_not():
    tokenizer = toy.tokenizer()
    tokenizer.chat_template = TEMPLATE
    talk = [{"role": "user", "content": "hi"}]
    assert render(talk, tokenizer, "x:1", prompt=True) == "<user>hi<go>"
    assert render(talk, tokenizer, "x:1", prompt=False) == "<user>hi"
    assert render("hi", tokenizer, "x:1", prompt=True) == "hi"


def test_a_conversation_that_cannot_be_rendered_is_an_error():
    with pytest.raises(DataError, match=r"x:1: a conversation, and the tokenizer has no chat template; use"):
        render([{"role": "user", "content": "hi"}], toy.tokenizer(), "x:1", prompt=True)
    for value in (3, [{"role": "user"}], ["hi"]):
        with pytest.raises(DataError, match="x:1: neither a string nor a list of messages"):
            render(value, toy.tokenizer(), "x:1", prompt=True)
