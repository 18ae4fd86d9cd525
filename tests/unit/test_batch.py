"""Batch: ragged columns that cannot be written, and plans that cover every row once."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.batch import (
    COLUMNS,
    Batch,
    MissingField,
    assign_to_ranks,
    cat,
    first_fit,
    from_sequences,
    groups_of,
    micro_batches,
)


def full_batch():
    """Three sequences with every column filled by recognisable values."""
    lengths = np.array([3, 1, 4])
    columns = {"lengths": lengths}
    for number, (name, column) in enumerate(COLUMNS.items()):
        size = lengths.sum() if column.per == "token" else len(lengths)
        columns.setdefault(name, (np.arange(size) + number) % 200)
    columns["labels"] = np.arange(2.0 * len(lengths)).reshape(len(lengths), 2)
    columns["response_mask"] = np.array([0, 1, 1, 1, 0, 1, 0, 1])
    return Batch(**columns)


def assert_equal(a, b):
    assert a.columns() == b.columns()
    for name in a.columns():
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_columns_have_their_dtype_and_cannot_be_written():
    batch = full_batch()
    for name, column in COLUMNS.items():
        assert getattr(batch, name).dtype == column.dtype
        with pytest.raises(ValueError, match="read-only"):
            getattr(batch, name)[...] = 0
    with pytest.raises(AttributeError, match="replace"):
        batch.rewards = np.zeros(3)


def test_the_callers_array_stays_writable():
    lengths = np.array([2], dtype=np.int64)
    Batch(tokens=np.zeros(2, np.int32), lengths=lengths)
    lengths[0] = 2


def test_a_column_that_is_missing_names_the_stage_that_fills_it():
    batch = from_sequences([np.arange(2)])
    assert not batch.has("values")
    with pytest.raises(MissingField, match=r"Batch\.values .* learner\.annotate"):
        _ = batch.values


def test_a_column_that_no_batch_has_is_refused():
    with pytest.raises(TypeError, match="no column reward"):
        from_sequences([np.arange(2)]).replace(reward=np.zeros(1))
    with pytest.raises(AttributeError, match="no column reward"):
        full_batch().has("reward")
    with pytest.raises(AttributeError, match="reward"):
        _ = full_batch().reward


def test_a_column_of_the_wrong_size_is_refused():
    with pytest.raises(ValueError, match=r"Batch\.rewards has 2 rows, expected 1 \(one per sequence\)"):
        from_sequences([np.arange(3)], rewards=np.zeros(2))


def test_take_reorders_tokens_with_their_sequences():
    batch = full_batch()
    taken = batch.take([2, 0])
    assert taken.tokens.tolist() == [*batch.tokens[4:8], *batch.tokens[0:3]]
    assert taken.labels.tolist() == [batch.labels[2].tolist(), batch.labels[0].tolist()]
    assert batch.flat_positions(np.array([2, 0])).tolist() == [4, 5, 6, 7, 0, 1, 2]
    assert_equal(batch.take(np.array([True, False, True])), batch.take([0, 2]))
    assert len(batch.take([])) == 0


def test_parts_put_together_are_the_batch():
    batch = full_batch()
    assert_equal(cat([batch.take([0]), batch.take([1, 2])]), batch)
    with pytest.raises(ValueError, match="different columns"):
        cat([batch, from_sequences([np.arange(2)])])


@pytest.mark.parametrize("names", [list(COLUMNS), ["tokens", "lengths", "rewards"]])
def test_arrow_and_pickle_keep_every_column_and_no_other(names):
    batch = full_batch()
    batch = Batch(**{name: getattr(batch, name) for name in names})
    assert_equal(Batch.from_arrow(batch.to_arrow()), batch)
    assert_equal(pickle.loads(pickle.dumps(batch)), batch)
    assert batch.to_arrow().num_rows == 3
    assert batch.to_arrow().column_names == names


def test_replace_leaves_the_old_batch_alone():
    batch = full_batch()
    other = batch.replace(rewards=np.ones(3))
    assert other.rewards.tolist() == [1, 1, 1]
    assert batch.rewards.tolist() != [1, 1, 1]


def test_response_lengths_count_the_mask():
    assert full_batch().response_lengths.tolist() == [2, 1, 2]


def test_canonical_order_is_by_example_then_sample():
    batch = full_batch().replace(example_id=np.array([2, 1, 1]), sample=np.array([0, 1, 0]))
    assert batch.sorted().example_id.tolist() == [1, 1, 2]
    assert batch.sorted().sample.tolist() == [0, 1, 0]


# plans --------------------------------------------------------------------------------------------------------------


ragged = st.lists(st.integers(1, 40), min_size=1, max_size=30).map(np.array)


def plan_in_one_loop(lengths, budget, world_size, unit, width):
    """micro_batches as one loop over units, with the room of each micro-batch next to it."""
    numbers = sorted(set(unit.tolist()))
    members = [[row for row, u in enumerate(unit) if u == number] for number in numbers]
    cost = [sum(12.0 * width * lengths[r] + float(lengths[r]) ** 2 for r in rows) for rows in members]
    load, plan, room = [0.0] * world_size, [[] for _ in range(world_size)], [[] for _ in range(world_size)]
    for u in sorted(range(len(members)), key=lambda u: (-cost[u], u)):
        rank = load.index(min(load))
        load[rank] += cost[u]
        size = sum(lengths[r] for r in members[u])
        i = 0
        while i < len(room[rank]) and room[rank][i] < size:
            i += 1
        if i == len(room[rank]):
            room[rank].append(budget)
            plan[rank].append([])
        room[rank][i] -= size
        plan[rank][i] += members[u]
    count = max(len(p) for p in plan)
    return [[sorted(rows) for rows in p] + [[]] * (count - len(p)) for p in plan]


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 6)), max_size=30),
    ranks=st.integers(1, 4),
    budget=st.integers(10, 90),
    width=st.sampled_from([0, 8]),
)
def test_a_plan_is_that_of_one_loop_over_units(rows, ranks, budget, width):
    lengths, unit = (np.array([row[i] for row in rows], np.int64) for i in (0, 1))
    plan = micro_batches(lengths, budget, ranks, unit, width)
    expected = plan_in_one_loop(lengths, budget, ranks, unit, width)
    assert [[batch.tolist() for batch in part] for part in plan] == expected
    assert all(batch.dtype == np.int64 for part in plan for batch in part)


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


def test_the_examples_of_the_docstrings_are_right():
    assert [rows.tolist() for rows in groups_of(np.array([7, 5, 7]))] == [[1], [0, 2]]
    assert assign_to_ranks([4.0, 3.0, 3.0, 2.0], 2) == [[0, 3], [1, 2]]
    assert first_fit([5, 4, 3, 2], 7) == [[0, 3], [1, 2]]
    assert micro_batches(np.zeros(0, np.int64), 8, 2) == [[], []]
