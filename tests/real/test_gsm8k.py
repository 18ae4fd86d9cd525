"""GSM8K as published: the rule that scores answers reads every reference solution. RLHF_RAY_REAL has data/gsm8k."""

import os
from pathlib import Path

import pytest

from rlhf_ray.config import DataConfig, load_job
from rlhf_ray.data import examples
from rlhf_ray.rewards.rules import bind_rule
from tests.helpers import JOBS

REAL = os.environ.get("RLHF_RAY_REAL")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(REAL is None, reason="RLHF_RAY_REAL names no folder with models and data"),
]


@pytest.mark.parametrize(("split", "size"), [("train", 7473), ("test", 1319)])
def test_every_row_is_understood(split, size):
    file = str(Path(REAL) / "data" / "gsm8k" / f"{split}.jsonl")
    config = load_job(JOBS["gsm8k"], [f"data.path={file}"]).data
    rows = examples.load(DataConfig(path=file, formats=config.formats), "data")
    assert len(rows) == size
    answers = [row["answer"] for row in rows]
    numbers = [int(a.rpartition("#### ")[2].replace(",", "")) for a in answers]
    judge = bind_rule("exact_answer", {"strict": True})
    texts = {
        "reference": (answers, 1.0),
        "number": ([f"so it is\n#### ${n:,}." for n in numbers], 1.0),
        "one more": ([f"#### {n + 1}" for n in numbers], 0.0),
        "unmarked": ([f"It is {n}" for n in numbers], 0.0),
    }
    for name, (completions, score) in texts.items():
        assert judge([r["prompt"] for r in rows], completions, answer=answers) == [score] * size, name
    assert bind_rule("exact_answer", {})([], texts["unmarked"][0], answer=answers) == [1.0] * size
    for row in rows:
        assert row["prompt"][-1]["content"].startswith(row["question"])
