"""Sums of metrics over micro-batches and ranks."""

import numpy as np
import pytest

from rlhf_ray.run.metrics import means_of, merge_sums


def test_sums_add_up_over_parts_and_divide_once():
    parts = [{"loss": (6.0, 2.0), "norm_max": 3}, {"loss": (1.0, 5.0)}, {"loss": (0, 0), "norm_max": 7, "once": (3, 4)}]
    total = merge_sums(parts)
    assert total == {"loss": (7.0, 7.0), "norm_max": 7.0, "once": (3.0, 4.0)}
    assert means_of(total) == {"loss": 1.0, "norm_max": 7.0, "once": 0.75}


def test_a_mean_does_not_depend_on_how_the_parts_were_cut():
    values, weights = np.arange(12.0), np.array([1.0, 3.0] * 6)
    means = means_of({"x": (float(values @ weights), float(weights.sum()))})
    for cuts in ([6], [1, 2, 3], [5, 11]):
        pieces = zip(np.split(values, cuts), np.split(weights, cuts), strict=True)
        assert means_of(merge_sums({"x": (v @ w, w.sum())} for v, w in pieces)) == pytest.approx(means)


def test_maxima_below_zero_and_numbers_of_other_types_become_floats():
    total = merge_sums([{"a_max": np.float32(-2), "b": (np.int64(1), np.float32(2))}, {"a_max": -3}])
    assert total == {"a_max": -2.0, "b": (1.0, 2.0)}
    assert all(type(x) is float for x in [total["a_max"], *total["b"]])


def test_what_nothing_was_weighed_for_is_left_out():
    assert means_of({"none": (0.0, 0.0), "some": (0.0, 1.0)}) == {"some": 0.0}
    assert means_of(merge_sums([])) == {}
