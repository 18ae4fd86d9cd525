"""Data that a job of reinforcement learning loads before its first step."""

import pytest

from rlhf_ray.config import parse
from rlhf_ray.toy import world as toy
from rlhf_ray.train.setup import load_pretraining_text
from tests.helpers import rl_job


@pytest.mark.parametrize("context", [16, 128])
def test_pretraining_text_is_cut_at_the_context(monkeypatch, context):
    monkeypatch.setattr("ray.put", lambda batch: batch)
    text = {"path": "toy:reviews/text", "size": 16}
    job = parse(rl_job(ptx_data=text, algorithm={"type": "ppo", "ptx_coef": 0.1}), "job")
    assert load_pretraining_text(job, toy.tokenizer(), context).batch.lengths.max() <= context
