"""What a supervised job says before its first step."""

import pytest

from tests.helpers import TINY, startup_parts

pytestmark = pytest.mark.integration


def test_the_parts_of_a_supervised_start_are_timed(train_here, tmp_path):
    job = {
        "job": "dpo",
        "model": {"init": TINY, "tokenizer": "toy"},
        "data": {"path": "toy:reviews/pairs", "size": 8},
        "batch_size": 4,
        "max_length": 64,
        "num_steps": 1,
    }
    train_here(job, tmp_path / "run")
    assert startup_parts(tmp_path / "run") == [
        "reading the model's files and the data",
        "reserving CPUs and GPUs",
        "starting the workers' processes",
        "loading the learner's models",
        "log-probs of the starting model",
    ]
