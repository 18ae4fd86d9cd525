"""Pairs, and single answers with the mismatched ones that KTO reads."""

import numpy as np
import pytest

from rlhf_ray.config import PreferenceJob
from rlhf_ray.data.examples import DataError, Rows
from rlhf_ray.tasks.preference import prepare_desirable, prepare_pairs
from rlhf_ray.tasks.registry import task_kind
from rlhf_ray.toy import world as toy
from tests.helpers import TINY
from tests.unit.tasks.helpers import BAD, EOS, GOOD, PROMPT, ids, lists, rows


@pytest.fixture
def tokenizer():
    return toy.tokenizer()


def test_pairs_are_chosen_then_rejected(tokenizer):
    examples = [
        {"prompt": PROMPT, "chosen": GOOD, "rejected": BAD},
        {"prompt": PROMPT, "chosen": BAD, "rejected": GOOD},
    ]
    batch = prepare_pairs(rows(*examples), tokenizer, 99).batch
    good, bad = ([*ids(tokenizer, PROMPT + side), EOS] for side in (GOOD, BAD))
    assert lists(batch) == [good, bad, bad, good]
    assert batch.labels.tolist() == [[1, 0], [0, 0], [1, 0], [0, 0]]
    assert batch.group.tolist() == [0, 0, 1, 1]
    assert batch.example_id.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("long_side", ["chosen", "rejected"])
def test_a_pair_with_one_long_side_is_dropped_whole_and_counted(tokenizer, long_side):
    short = {"prompt": PROMPT, "chosen": GOOD, "rejected": BAD}
    fits = len(ids(tokenizer, PROMPT + GOOD)) + 1
    made = prepare_pairs(rows(short, {**short, long_side: GOOD * 2}, short), tokenizer, fits)
    assert made.num_dropped == 1
    assert made.batch.example_id.tolist() == [0, 0, 2, 2]
    assert made.batch.group.tolist() == [0, 0, 1, 1]
    assert {s[-1] for s in lists(made.batch)} == {EOS}
    with pytest.raises(DataError, match="longer than max_length; raise it"):
        prepare_pairs(rows(short), tokenizer, fits - 1)


def test_pairs_keep_their_margin(tokenizer):
    row = {"prompt": PROMPT, "chosen": GOOD, "rejected": BAD}
    batch = prepare_pairs(rows(row, {**row, "margin": 2}), tokenizer, 99).batch
    assert batch.labels.tolist() == [[1, 0], [0, 0], [1, 2], [0, 2]]
    with pytest.raises(DataError, match=r"x\.jsonl:1: margin is 'much', expected a number"):
        prepare_pairs(rows({**row, "margin": "much"}), tokenizer, 99)


def test_a_pair_with_equal_sides_is_refused(tokenizer):
    row = {"prompt": "the view", "chosen": " was great", "rejected": " was great"}
    with pytest.raises(DataError, match=r"x:3: chosen and rejected are the same"):
        prepare_pairs(Rows([row], "x", [3]), tokenizer, 16)


def answers(*labels):
    rows = [
        {"prompt": f"the {p}", "completion": f" was {w}", "label": x}
        for p, w, x in zip(toy.PARTS, toy.POSITIVE, labels, strict=False)
    ]
    return Rows(rows, "answers.jsonl", range(1, len(rows) + 1))


def test_a_mismatched_row_is_the_prompt_with_the_next_completion():
    tokenizer = toy.tokenizer()
    batch = prepare_desirable(answers(True, 0, "1"), tokenizer, 16).batch
    text = [tokenizer.decode(s) for s in batch.sequences()]
    assert text[:3] == ["the staff was great <eos>", "the staff was lovely <eos>", "the price was lovely <eos>"]
    assert text[5] == "the style was great <eos>"
    assert batch.labels[:, 0].tolist() == [1, -1, 0, -1, 1, -1]
    assert batch.group.tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.prompt_length.tolist() == [2] * 6


@pytest.mark.parametrize(
    ("labels", "says"), [((True, "maybe"), "answers.jsonl:2: label is 'maybe'"), ((True,), "fewer than two")]
)
def test_answers_that_cannot_be_used(labels, says):
    with pytest.raises(DataError, match=says):
        prepare_desirable(answers(*labels), toy.tokenizer(), 16)


def job(objective):
    model = {"init": TINY, "tokenizer": "toy"}
    return PreferenceJob(model=model, data={"path": "none"}, num_steps=1, max_length=16, objective=objective)


def test_a_step_of_kto_reads_the_matched_rows_and_its_reference_point_the_others():
    task = task_kind(job({"type": "kto"})).build(job({"type": "kto"}), answers(True, 0, "1"), None, toy.tokenizer())
    batch = task.data.train

    def log_probs(rows, level=-1.0):
        """As a model whose every sampled token has this log-prob; mismatched rows are more likely."""
        mismatched = np.repeat(rows.labels[:, 0] == -1, rows.lengths)
        return rows.replace(old_log_probs=rows.response_mask * np.where(mismatched, level + 0.5, level))

    batch = batch.replace(ref_log_probs=log_probs(batch, -1.25).old_log_probs)
    objective, rows = task.for_step(batch, log_probs)
    assert rows.tolist() == [0, 2, 4]
    assert objective.reference_point == pytest.approx(0.25 * 3)  # three tokens of each mismatched answer
    assert task.objective.reference_point == 0


@pytest.mark.parametrize(
    ("kind", "reads"), [("dpo", True), ("ipo", True), ("kto", True), ("orpo", False), ("simpo", False)]
)
def test_only_objectives_with_a_reference_get_its_log_probs(kind, reads):
    example = {"prompt": PROMPT, "chosen": GOOD, "rejected": BAD, "completion": GOOD, "label": True}
    task = task_kind(job({"type": kind})).build(job({"type": kind}), rows(example, example), None, toy.tokenizer())

    def log_probs(batch):
        return batch.replace(old_log_probs=-batch.response_mask.astype(float))

    batch = task.with_reference(task.data.train, log_probs)
    assert batch.has("ref_log_probs") == reads
    if reads:
        assert batch.ref_log_probs.tolist() == (-batch.response_mask.astype(float)).tolist()
        assert task.with_reference(batch, None) is batch  # a learner that starts again has them already
