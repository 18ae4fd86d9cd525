"""What is said of a model's answers, and what is refused before any is asked for."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from rlhf_ray.cli import main
from rlhf_ray.config import BadInput, EvaluateJob, parse
from rlhf_ray.data.prompts import Prompts
from rlhf_ray.jobs.evaluate import check_columns, judge_answers, win_rates
from tests.helpers import ROOT, SHARE, TINY

PROMPTS = Prompts(
    [np.array([5])] * 3,
    pa.table({"example_id": [4, 7, 9], "prompt": ["a", "b", "c"], "answer": ["x", "y", "y"], "topic": ["p", "q", "q"]}),
    np.array([4, 7, 9]),
)


def job(**options):
    tree = {
        "model": {"init": TINY, "tokenizer": "toy"},
        "data": {"path": "none"},
        "rewards": {"terms": [SHARE]},
        **options,
    }
    return EvaluateJob.model_validate(tree)


def rows(ids, scores, texts=None, samples=1):
    count = len(ids)
    return pa.table(
        {
            "example_id": ids, "sample": [i % samples for i in range(count)], "prompt": ["?"] * count,
            "completion": texts or ["x"] * count, "part/share": np.array(scores, float), "length": [1] * count,
            "truncated": [0] * count,
        }
    )  # fmt: skip


def test_wins_are_paired_by_prompt_also_where_one_model_was_asked_fewer():
    ours, theirs = rows([4, 7, 9], [1.0, 0.0, 0.5]), rows([7, 9], [1.0, 0.5])
    rates = win_rates(ours, theirs, ["share"])["share"]
    assert (rates["mean"], rates["answers"]) == (0.25, 2)
    with pytest.raises(BadInput, match="no prompt was asked of both"):
        win_rates(ours, rows([5], [1.0]), ["share"])


def test_answers_are_judged_by_term_class_group_and_k():
    answers = rows([4, 4, 7, 7, 9, 9], [1, 0, 0, 0, 1, 1], ["x", "y", " y ", "x", "y", "y"], samples=2)
    config = job(measures=["classes", "distinct_1"], groups=["topic"], pass_at=[1, 2], samples=2, greedy=False)
    evaluation = judge_answers(config, answers, PROMPTS)
    assert evaluation["terms"]["share"]["mean"] == pytest.approx(0.5)
    assert evaluation["measures"]["classes"]["accuracy"] == pytest.approx(4 / 6)
    assert evaluation["measures"]["classes"]["confusion"] == [[1, 1], [1, 3]]
    assert evaluation["groups"]["topic"]["share"]["groups"] == {"p": 0.5, "q": 0.5}
    assert evaluation["pass@1"]["share"]["mean"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert evaluation["pass@2"]["share"]["mean"] == pytest.approx((1 + 0 + 1) / 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": ["author"]}, r"groups: data has no column 'author' \(it has prompt, answer, topic\)"),
        ({"measures": ["classes"], "reference": "label"}, "reference: data has no column 'label'"),
    ],
)
def test_a_column_that_is_not_there_is_named_before_anything_is_asked(options, message):
    with pytest.raises(BadInput, match=message):
        check_columns(job(**options), PROMPTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 2}, "samples = 2 greedy answers are all equal"),
        ({"pass_at": [3], "samples": 2, "greedy": False}, "pass_at = 3 needs as many samples"),
    ],
)
def test_questions_without_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        job(**options)


def test_the_best_step_needs_held_out_examples():
    sft = {"job": "sft", "model": {"init": TINY, "tokenizer": "toy"}, "data": {"path": "x"}, "num_steps": 1}
    with pytest.raises(BadInput, match=r"evaluate: best: 'f1' is measured on held-out examples"):
        parse({**sft, "evaluate": {"best": "f1"}}, "x")


def test_a_pipeline_is_evaluated_by_stage(tmp_path, capsys):
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "sft" / "model").mkdir(parents=True)
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "give one of its stages: sft" in capsys.readouterr().err


def test_a_listing_ends_quietly_where_nobody_reads_on():
    done = subprocess.run(
        f"{sys.executable} -m rlhf_ray options | head -1; echo ${{PIPESTATUS[0]}}", shell=True, cwd=ROOT,
        executable="/bin/bash", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "0"
    assert "Traceback" not in done.stderr
