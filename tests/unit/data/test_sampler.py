"""The sampler: seeded epochs whose whole state is a position."""

import numpy as np
import pytest

from rlhf_ray.config import BadInput
from rlhf_ray.data.sampler import Mixture, Sampler, Shares, balanced


@pytest.mark.parametrize("count", [1, 7, 10])
def test_every_epoch_holds_each_example_once(count):
    sampler = Sampler(10, seed=3)
    order = np.concatenate([sampler.indices(s, min(count, 30 - s)) for s in range(0, 30, count)])
    for epoch in order.reshape(3, 10):
        assert sorted(epoch) == list(range(10))


def test_a_position_means_the_same_example_however_it_is_asked_for():
    whole = Sampler(7, seed=1).indices(0, 40)
    again = Sampler(7, seed=1)
    assert [int(again.indices(p, 1)[0]) for p in reversed(range(40))] == whole[::-1].tolist()
    assert again.indices(5, 20).tolist() == whole[5:25].tolist()  # over two borders between epochs


def test_epochs_and_seeds_differ():
    order = Sampler(50, seed=0).indices(0, 150).reshape(3, 50)
    assert len({tuple(e) for e in order.tolist()}) == 3
    assert Sampler(50, seed=1).indices(0, 50).tolist() != order[0].tolist()
    assert order[0].tolist() != list(range(50))


def test_shape_and_type_and_an_empty_question():
    indices = Sampler(5, seed=0).indices(3, 4)
    assert indices.shape == (4,)
    assert indices.dtype == np.int64
    assert Sampler(5, seed=0).indices(3, 0).shape == (0,)


def test_numpys_global_state_is_neither_read_nor_changed():
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    first = Sampler(31, seed=9).indices(0, 31).tolist()
    assert np.random.get_state()[1].tolist() == before
    np.random.seed(1)
    assert Sampler(31, seed=9).indices(0, 31).tolist() == first


def test_no_examples_is_an_error():
    with pytest.raises(ValueError, match="at least one example"):
        Sampler(0, seed=0)


MEMBERS = [np.arange(0, 50), np.arange(50, 57), np.arange(57, 60)]


@pytest.mark.parametrize("weights", [(1, 1, 1), (5, 2, 0.5), (0.013, 0.9, 0.3), (100, 1, 1)])
def test_every_stretch_of_a_mixture_has_the_parts_by_their_weights(weights):
    mixture = Mixture(MEMBERS, weights, seed=3)
    drawn, shares = mixture.indices(0, 2000), np.array(weights) / sum(weights)
    part = np.searchsorted([50, 57], drawn, side="right")
    for end in (mixture.block, 777, 2000):
        count = np.bincount(part[:end], minlength=3)
        assert np.abs(count - shares * end).max() <= (1 if end % mixture.block == 0 else 1 + mixture.block)
    assert np.bincount(part, minlength=3) / 2000 == pytest.approx(shares, abs=(1 + mixture.block) / 2000)


def test_a_parts_epochs_are_its_own():
    drawn = Mixture(MEMBERS, (1, 1, 2), seed=3).indices(0, 1000)
    for member in MEMBERS:
        own = drawn[np.isin(drawn, member)]
        # a block is shuffled, so an epoch's border may move by a block
        counts = [
            np.bincount(own[s : s + len(member)] - member[0], minlength=len(member))
            for s in range(0, len(own), len(member))
        ]
        assert np.cumsum(counts, 0).max(1) - np.cumsum(counts, 0).min(1) == pytest.approx(1, abs=2)


def test_a_mixture_goes_on_from_any_position_as_it_would_have():
    whole = Mixture(MEMBERS, (3, 2, 1), seed=5).indices(0, 600)
    for start, count in ((0, 7), (7, 32), (599, 1), (113, 400), (20, 0)):
        again = Mixture(MEMBERS, (3, 2, 1), seed=5).indices(start, count)
        assert again.tolist() == whole[start : start + count].tolist()
    assert Mixture(MEMBERS, (3, 2, 1), seed=6).indices(0, 600).tolist() != whole.tolist()


def test_shares_know_the_part_that_an_example_was_made_of():
    rows = np.array([0, 0, 1, 2, 2, 2, 4])  # rows 0 and 2 gave several examples, row 3 none
    drawn = Shares((2, 5), (1.0, 3.0), ("a", "b")).sampler(rows, seed=0).indices(0, 800)
    assert np.isin(drawn, [3, 4, 5, 6]).mean() == pytest.approx(0.75, abs=0.01)
    assert np.bincount(drawn, minlength=7)[:3].tolist() == pytest.approx([200 / 3] * 3, abs=1)
    with pytest.raises(BadInput, match="b: no example of this part"):
        Shares((2, 5), (1.0, 3.0), ("a", "b")).sampler(rows[:3], seed=0)


def test_a_balanced_epoch_has_every_class_equally_often():
    given = np.array([0] * 30 + [1] * 7 + [2] * 3)
    drawn = balanced(given, 3).indices(0, 42)
    assert np.bincount(given[drawn]).tolist() == [14, 14, 14]
    assert len(set(drawn[given[drawn] == 0].tolist())) == 14  # nothing of a frequent class twice
    assert sorted(drawn[given[drawn] == 1].tolist()) == sorted([*range(30, 37)] * 2)  # all of a rare one equally often
