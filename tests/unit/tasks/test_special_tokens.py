"""Prompts, answers and pairs under tokenizers and templates that add special tokens themselves."""

import pytest

from rlhf_ray.data.examples import DataError
from rlhf_ray.data.prompts import encode_prompts
from rlhf_ray.tasks import language_model, sft
from rlhf_ray.tasks.preference import prepare_pairs
from rlhf_ray.tasks.reward_model import prepare_labelled
from rlhf_ray.toy import world as toy
from tests.unit.tasks.helpers import BAD, BOS, EOS, GOOD, PROMPT, SIDES, TEMPLATE, ids, lists, rows, toy_with_bos


@pytest.fixture
def tokenizer():
    return toy.tokenizer()


def test_a_bos_is_there_once_and_before_the_prompt():
    with_bos = toy_with_bos()
    examples = [{"prompt": PROMPT, "completion": GOOD, "chosen": GOOD, "rejected": BAD}]
    for make in (sft.prepare, prepare_pairs):
        for sequence in lists(make(rows(*examples), with_bos, 99).batch):
            assert sequence[0] == BOS
            assert sequence.count(BOS) == 1
    assert encode_prompts(rows(*examples), with_bos, 99, "error")[0].tolist() == [BOS, *ids(with_bos, PROMPT)]


@pytest.mark.parametrize("make", [language_model.prepare, sft.prepare, prepare_pairs, prepare_labelled])
def test_a_tokenizer_without_eos_is_an_error_with_the_remedy(tokenizer, make):
    tokenizer.eos_token = None
    row = {"text": "a", "prompt": "a", "completion": "b", "chosen": "b", "rejected": "c", "label": 1}
    with pytest.raises(DataError, match=r"no eos_token.*set eos_token in its tokenizer_config\.json"):
        make(rows(row), tokenizer, 99)


def test_a_template_that_writes_bos_and_eos_gets_no_second_ones():
    with_bos = toy_with_bos()
    with_bos.chat_template = "<bos>" + TEMPLATE.replace(" {{ m.content }}", " {{ m.content }} <eos>\n")
    whole = [BOS, *ids(with_bos, "the view <eos> : was great"), EOS]
    for make in (sft.prepare, prepare_pairs):
        assert lists(make(rows(SIDES), with_bos, 99).batch)[0] == whole
    assert encode_prompts(rows(SIDES), with_bos, 99, "error")[0].tolist() == whole[:5]


def test_a_template_that_opens_generation_otherwise_is_refused(tokenizer):
    tokenizer.chat_template = TEMPLATE.replace("prompt %} :", "prompt %} : mixed")
    for make in (sft.prepare, prepare_pairs):
        with pytest.raises(DataError, match=r"x.jsonl:1: the chat template does not begin .*: mixed'\); give both as"):
            make(rows(SIDES), tokenizer, 99)
