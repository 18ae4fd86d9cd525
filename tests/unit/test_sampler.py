"""The sampler: seeded epochs whose whole state is a position."""

import numpy as np
import pytest

from rlhf_ray.data.sampler import Sampler


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
