"""Reward models' examples: labels, scores, and the steps of a reasoning."""

import pytest

from rlhf_ray.data.examples import DataError
from rlhf_ray.tasks.reward_model import prepare_labelled, prepare_scored, prepare_steps
from rlhf_ray.toy import world as toy
from tests.unit.tasks.helpers import EOS, ids, lists, rows


@pytest.fixture
def tokenizer():
    return toy.tokenizer()


def test_labels_are_zero_or_one_and_sentence_is_text(tokenizer):
    examples = [{"text": "the view", "label": 1}, {"sentence": "the end was ugly", "label": "0"}]
    batch = prepare_labelled(rows(*examples), tokenizer, 99).batch
    assert batch.labels.tolist() == [[1.0], [0.0]]
    assert [s[-1] for s in lists(batch)] == [EOS, EOS]
    with pytest.raises(DataError, match=r"x\.jsonl:1: label is 2, expected 0 or 1"):
        prepare_labelled(rows({"text": "the view", "label": 2}), tokenizer, 99)


def test_scores_are_numbers_of_texts_or_answers(tokenizer):
    examples = rows(
        {"text": "the view was", "score": 0.5}, {"prompt": "the view", "completion": " was great", "score": 2}
    )
    batch = prepare_scored(examples, tokenizer, 16).batch
    assert lists(batch) == [[*ids(tokenizer, "the view was"), EOS], [*ids(tokenizer, "the view was great"), EOS]]
    assert batch.labels.tolist() == [[0.5], [2.0]]
    with pytest.raises(DataError, match=r"score is 'high', expected a number"):
        prepare_scored(rows({"text": "a", "score": "high"}), tokenizer, 16)


def test_a_step_is_judged_at_the_end_of_its_separator(tokenizer):
    examples = rows({"prompt": "the view :", "completions": ["was great", "was"], "labels": [True, False]})
    batch = prepare_steps(examples, tokenizer, 16, " .").batch
    assert tokenizer.decode(batch.tokens) == "the view : was great . was ."
    assert batch.response_mask.tolist() == [0, 0, 0, 0, 0, 1, 0, 1]
    assert batch.targets.tolist() == [0, 0, 0, 0, 0, 1, 0, 0]
    for labels, says in (
        ([True], "2 completions and 1 labels"),
        ([True, "no"], "expected true or false for each step"),
    ):
        wrong = rows({"prompt": "the view :", "completions": ["was great", "was"], "labels": labels})
        with pytest.raises(DataError, match=says):
            prepare_steps(wrong, tokenizer, 16, " .")
