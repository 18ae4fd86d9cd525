"""The lines that time a job's start."""

import re

import pytest

from rlhf_ray.train.startup import startup_part


def test_a_part_is_timed_when_it_is_over(notices):
    with startup_part("loading the models"):
        assert notices == []
    (line,) = notices
    assert re.fullmatch(r"start-up: loading the models took \d+\.\d s", line)


def test_a_part_that_fails_is_not_timed(notices):
    with pytest.raises(ValueError, match="no such model"), startup_part("loading the models"):
        raise ValueError("no such model")
    assert notices == []
