"""Prompts with answers and conversations: what is a token, what bears loss."""

import pytest

from rlhf_ray.data.examples import DataError
from rlhf_ray.tasks import sft
from rlhf_ray.toy import world as toy
from tests.unit.tasks.helpers import CONVERSATION, EOS, GOOD, PROMPT, SIDES, TEMPLATE, ids, lists, rows


@pytest.fixture
def tokenizer():
    return toy.tokenizer()


def test_supervised_bears_loss_on_completion_and_eos(tokenizer):
    batch = sft.prepare(rows({"prompt": PROMPT, "completion": GOOD}), tokenizer, 99).batch
    prompt, completion = ids(tokenizer, PROMPT), ids(tokenizer, GOOD)
    assert lists(batch) == [[*prompt, *completion, EOS]]
    assert lists(batch, "response_mask") == [[0] * len(prompt) + [1] * (len(completion) + 1)]


def test_an_eos_in_the_text_is_not_doubled(tokenizer):
    batch = sft.prepare(rows({"prompt": PROMPT, "completion": GOOD + " <eos>"}), tokenizer, 99).batch
    assert lists(batch)[0].count(EOS) == 1


def test_a_conversation_is_cut_where_the_prompt_ends(tokenizer):
    tokenizer.chat_template = TEMPLATE
    by_sides = sft.prepare(rows(SIDES), tokenizer, 99).batch
    by_messages = sft.prepare(rows({"messages": CONVERSATION}), tokenizer, 99).batch
    assert lists(by_sides) == lists(by_messages) == [[*ids(tokenizer, "the view : was great"), EOS]]
    assert lists(by_sides, "response_mask") == [[0, 0, 0, 1, 1, 1]]


@pytest.mark.parametrize("end", ["", " <eos>\n"])
def test_every_turn_of_the_assistant_is_learnt(tokenizer, end):
    """What it says and the end token; whether or not the template writes one."""
    tokenizer.chat_template = TEMPLATE.replace(
        " {{ m.content }}", " {{ m.content }}{% if m.role == 'assistant' %}" + end + "{% endif %}"
    )
    messages = [*CONVERSATION, {"role": "user", "content": "the staff"}, {"role": "assistant", "content": "was awful"}]
    batch = sft.prepare(rows({"messages": messages}), tokenizer, 99).batch
    whole = [*ids(tokenizer, "the view : was great"), EOS, *ids(tokenizer, "the staff : was awful"), EOS]
    assert lists(batch) == [whole]
    assert lists(batch, "response_mask") == [[0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]]


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer):
    tokenizer.chat_template = "{{ messages|length }}" + TEMPLATE
    messages = [*CONVERSATION, {"role": "user", "content": "the staff"}, {"role": "assistant", "content": "was awful"}]
    with pytest.raises(DataError, match=r"x.jsonl:1"):
        sft.prepare(rows({"messages": messages}), tokenizer, 99)


@pytest.mark.parametrize("messages", ["a messages", CONVERSATION[:1]])
def test_messages_are_a_list_with_an_answer(tokenizer, messages):
    with pytest.raises(DataError, match=r"x\.jsonl:1: column 'messages' is not a list of two or more messages"):
        sft.prepare(rows({"messages": messages}), tokenizer, 99)
