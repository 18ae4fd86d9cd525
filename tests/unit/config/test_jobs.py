"""What follows from a job's options."""

import pytest

from rlhf_ray.config import parse
from tests.helpers import rl_job


@pytest.mark.parametrize(
    ("changes", "columns"),
    [
        ({}, []),  # one update a step, without KL: its own log-probs are the old ones
        ({"epochs": 2}, ["old_log_probs"]),
        ({"num_mini_batches": 2}, ["old_log_probs"]),
        ({"kl": {"coef": 0.1}}, ["old_log_probs", "ref_log_probs"]),
    ],
)
def test_nothing_is_annotated_that_an_update_computes_itself(changes, columns):
    assert parse(rl_job(algorithm={"type": "grpo", **changes}), "job").columns_to_annotate == columns
