"""Batch: ragged columns that cannot be written, and plans that cover every row once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.batch import COLUMNS, Batch, MissingField, cat, from_sequences, micro_batches


def whole():
    """A batch with every column filled by recognisable values."""
    lengths = np.array([3, 1, 4])
    total, rows = int(lengths.sum()), len(lengths)
    made = {"lengths": lengths}
    for number, (name, column) in enumerate(COLUMNS.items()):
        size = total if column["per"] == "token" else rows
        made.setdefault(name, (np.arange(size) + number) % 200)
    made["labels"] = np.arange(2.0 * rows).reshape(rows, 2)
    made["response_mask"] = np.array([0, 1, 1, 1, 0, 1, 0, 1])
    return Batch(**made)


def same(a, b):
    assert a.columns() == b.columns()
    for name in a.columns():
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_columns_have_their_dtype_and_cannot_be_written():
    batch = whole()
    for name, column in COLUMNS.items():
        assert getattr(batch, name).dtype == column["dtype"]
        with pytest.raises(ValueError, match="read-only"):
            getattr(batch, name)[...] = 0


def test_the_callers_array_stays_writable():
    lengths = np.array([2], dtype=np.int64)
    Batch(tokens=np.zeros(2, np.int32), lengths=lengths)
    lengths[0] = 2


def test_a_column_that_is_missing_names_the_stage_that_fills_it():
    batch = from_sequences([np.arange(2)])
    assert not batch.has("values")
    with pytest.raises(MissingField, match=r"Batch\.values .* learner\.annotate"):
        _ = batch.values


def test_a_column_of_the_wrong_size_is_refused():
    with pytest.raises(ValueError, match=r"Batch\.rewards has 2 rows, expected 1"):
        from_sequences([np.arange(3)], rewards=np.zeros(2))


def test_take_reorders_tokens_with_their_sequences():
    batch = whole()
    taken = batch.take([2, 0])
    assert taken.tokens.tolist() == [*batch.tokens[4:8], *batch.tokens[0:3]]
    assert taken.labels.tolist() == [batch.labels[2].tolist(), batch.labels[0].tolist()]
    same(batch.take(np.array([True, False, True])), batch.take([0, 2]))
    assert len(batch.take([])) == 0


def test_parts_put_together_are_the_whole():
    batch = whole()
    same(cat([batch.take([0]), batch.take([1, 2])]), batch)
    with pytest.raises(ValueError, match="different columns"):
        cat([batch, from_sequences([np.arange(2)])])


def test_arrow_keeps_every_column():
    batch = whole()
    same(Batch.from_arrow(batch.to_arrow()), batch)
    assert batch.to_arrow().num_rows == 3


def test_replace_leaves_the_old_batch_alone():
    batch = whole()
    other = batch.replace(rewards=np.ones(3))
    assert other.rewards.tolist() == [1, 1, 1]
    assert batch.rewards.tolist() != [1, 1, 1]


def test_response_lengths_count_what_was_sampled():
    assert whole().response_lengths.tolist() == [2, 1, 2]


def test_canonical_order_is_by_example_then_sample():
    batch = whole().replace(example_id=np.array([2, 1, 1]), sample=np.array([0, 1, 0]))
    assert batch.sorted().example_id.tolist() == [1, 1, 2]
    assert batch.sorted().sample.tolist() == [0, 1, 0]


ragged = st.lists(st.integers(1, 40), min_size=1, max_size=30).map(np.array)


@settings(max_examples=60, deadline=None)
@given(lengths=ragged, ranks=st.integers(1, 4), budget=st.integers(40, 90))
def test_a_plan_covers_each_row_once_within_budget_and_evenly(lengths, ranks, budget):
    plan = micro_batches(lengths, budget, ranks)
    assert len(plan) == ranks
    assert len({len(part) for part in plan}) == 1
    rows = np.concatenate([rows for part in plan for rows in part])
    assert sorted(rows.tolist()) == list(range(len(lengths)))
    assert all(lengths[rows].sum() <= budget for part in plan for rows in part if len(rows))


@settings(max_examples=40, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=12), ranks=st.integers(1, 3)
)
def test_a_pair_is_never_separated(pairs, ranks):
    lengths, unit = np.array(pairs).reshape(-1), np.repeat(np.arange(len(pairs)), 2)
    for part in micro_batches(lengths, 40, ranks, unit):
        for rows in part:
            _, counts = np.unique(unit[rows], return_counts=True)
            assert (counts == 2).all()


def test_ranks_get_about_the_same_cost():
    lengths = np.array([100, 10, 10, 10, 10, 10, 10, 10, 10, 10, 90, 10])
    cost = [float((lengths[np.concatenate(part)] ** 2.0).sum()) for part in micro_batches(lengths, 200, 2)]
    assert max(cost) < 1.3 * min(cost)
