"""Pre-training texts: what is a token, what bears loss, where a long text is cut."""

import pytest

from rlhf_ray.tasks import language_model
from rlhf_ray.toy import world as toy
from tests.unit.tasks.helpers import EOS, PROMPT, ids, lists, rows


@pytest.fixture
def tokenizer():
    return toy.tokenizer()


def test_language_model_ends_in_eos_and_bears_loss_on_all_but_the_first(tokenizer):
    made = language_model.prepare(rows({"text": PROMPT}, {"text": "the view"}), tokenizer, 99)
    assert lists(made.batch) == [[*ids(tokenizer, PROMPT), EOS], [*ids(tokenizer, "the view"), EOS]]
    assert lists(made.batch, "response_mask") == [[0, 1, 1, 1, 1, 1], [0, 1, 1]]
    assert made.num_dropped == 0


def test_language_model_cuts_long_texts_into_pieces_of_the_same_example(tokenizer):
    text = "the view was great . the end was ugly ."
    made = language_model.prepare(rows({"text": "the view"}, {"text": text}), tokenizer, 4)
    assert [len(s) for s in made.batch.sequences()] == [3, 4, 4, 3]
    assert made.batch.example_id.tolist() == [0, 1, 1, 1]
    assert [i for s in lists(made.batch)[1:] for i in s] == [*ids(tokenizer, text), EOS]
