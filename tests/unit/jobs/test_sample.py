"""What of a model's answers is kept as data."""

import numpy as np
import pyarrow as pa
import pytest

from rlhf_ray.config import ConfigError, SampleJob, parse
from rlhf_ray.data.prompts import Prompts
from rlhf_ray.jobs.pipeline import resolve_stage
from rlhf_ray.jobs.sample import select_examples
from tests.helpers import SHARE, TINY

PROMPTS = Prompts(
    [np.array([5]), np.array([6]), np.array([7])],
    pa.table({"example_id": [4, 7, 9], "prompt": ["a", "b", "c"], "topic": ["x", "y", "z"]}),
    np.array([4, 7, 9]),
)
ROWS = pa.table(
    {
        "example_id": [4, 4, 4, 7, 7, 7, 9, 9, 9],
        "completion": list("ABCDEFGHI"),
        "reward": [1.0, 3.0, 2.0, 5.0, 5.0, 5.0, float("nan"), float("nan"), float("nan")],
    }
)


def job(**options):
    model = {"init": TINY, "tokenizer": "toy"}
    return SampleJob.model_validate(
        {"model": model, "data": {"path": "none"}, "rewards": {"terms": [SHARE]}, **options}
    )


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ({}, "BD"),
        ({"above": 3.0}, "D"),
        ({"keep": "all"}, "ABCDEF"),
        ({"keep": "all", "above": 1.5}, "BCDEF"),
    ],
)
def test_answers_are_kept_by_their_reward_with_all_columns(options, texts):
    examples = select_examples(job(**options), ROWS, PROMPTS)
    assert "".join(row["completion"] for row in examples) == texts
    assert all(set(row) == {"prompt", "topic", "completion", "reward"} for row in examples)
    assert all(row["topic"] == {"a": "x", "b": "y"}[row["prompt"]] for row in examples)


def test_a_pair_is_the_best_and_the_worst_where_they_differ():
    (pair,) = select_examples(job(keep="pairs"), ROWS, PROMPTS)
    assert pair == {"prompt": "a", "topic": "x", "chosen": "B", "rejected": "A", "reward": 3.0, "difference": 2.0}
    assert select_examples(job(keep="pairs", above=3.0), ROWS, PROMPTS) == []


def test_a_pair_needs_two_answers():
    with pytest.raises(ValueError, match="set samples to 2 or more"):
        job(keep="pairs", samples=1)


def test_a_conversation_is_answered_by_a_message():
    messages = [{"role": "user", "content": "a"}]
    prompts = Prompts([np.array([5])], pa.table({"example_id": [4], "prompt": [messages]}), np.array([4]))
    (row,) = select_examples(job(), ROWS.slice(0, 3), prompts)
    assert row["completion"] == [{"role": "assistant", "content": "B"}]


def test_a_stages_path_is_its_model_or_a_file_of_its_run(tmp_path):
    sft = {"job": "sft", "model": {"path": "stage:sample"}, "data": {"path": "stage:sample/kept.jsonl"}, "num_steps": 1}
    sample = {"job": "sample", **job().model_dump(include={"model", "data", "rewards"})}
    tree = {"job": "pipeline", "run": {"dir": str(tmp_path)}, "stages": {"sample": sample, "sft": sft}}
    pipeline = parse(tree, "x")
    stage = resolve_stage(pipeline, "sft", pipeline.stages["sft"])
    assert stage.data.path == str(tmp_path / "sample" / "kept.jsonl")
    assert stage.model.path == str(tmp_path / "sample" / "model")
    sft["data"]["path"] = "stage:none/kept.jsonl"
    with pytest.raises(ConfigError, match="names no earlier stage"):
        parse(tree, "x")
