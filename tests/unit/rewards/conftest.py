"""Reward models that the tests of rewards share."""

import pytest

from rlhf_ray.toy import world as toy
from tests.unit.rewards.helpers import make_judge


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A random reward model of the toy vocabulary with two more words, so that it must be given text; it has no pad token."""
    tokenizer = toy.tokenizer()
    tokenizer.add_tokens(["[one]", "[two]"])
    tokenizer.pad_token = None
    return make_judge(tmp_path_factory.mktemp("judge"), tokenizer)


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """A random reward model with the policy's tokenizer, context 128."""
    return make_judge(tmp_path_factory.mktemp("twin"), toy.tokenizer())
