"""What `report` says of a run's evaluations, and of a pipeline's stages."""

import pyarrow as pa
import pytest

from rlhf_ray.cli import main
from rlhf_ray.config.jobs import EvaluateRL
from rlhf_ray.report.evaluations import compare_first_and_last, comparison_tables, stage_results
from rlhf_ray.run.reader import evaluation_file
from rlhf_ray.train import evaluation
from rlhf_ray.train.evaluation import Difference


def write_evaluation(run_dir, step, completions, rewards):
    """An evaluation with an answer for each prompt."""
    count = len(completions)
    rows = pa.table(
        {
            "example_id": list(range(count)),
            "sample": [0] * count,
            "prompt": [f"prompt {i}" for i in range(count)],
            "completion": completions,
            "reward": rewards,
            "part/words": [2 * reward for reward in rewards],
        }
    )
    evaluation.write_evaluation(evaluation_file(run_dir, step), rows, EvaluateRL())


def test_the_first_and_the_last_evaluation_are_compared(tmp_path):
    for step, rewards in ((0, [0.0, 1.0]), (2, [9.0, 9.0]), (4, [0.5, 1.5])):
        write_evaluation(tmp_path, step, [f"a{step}", f"b{step}"], rewards)
    comparison = compare_first_and_last(tmp_path)
    reward = comparison.differences["reward"]
    assert (reward.before, reward.after) == (0.5, 1.0)
    assert (reward.low, reward.high) == pytest.approx((0.5, 0.5))  # both prompts rose by as much
    assert [(s.prompt, s.before, s.after) for s in comparison.samples] == [
        ("prompt 0", "a0", "a4"),
        ("prompt 1", "b0", "b4"),
    ]
    measures, samples = comparison_tables(comparison, num_samples=1)
    assert [measures.row_count, samples.row_count] == [2, 1]
    assert len(comparison_tables(comparison, num_samples=0)) == 1


def test_one_evaluation_is_no_comparison(tmp_path):
    write_evaluation(tmp_path, 0, ["a"], [0.0])
    assert compare_first_and_last(tmp_path) is None


def test_results_of_stages_are_records_of_numbers_and_of_differences():
    difference = {"before": 0.0, "after": 1.0, "low": 0.5, "high": 1.5}
    results = {"sft": {"evaluate/loss/cross_entropy": 2.5}, "ppo": {"part/words": difference}}
    assert [(r.stage, r.measure, r.value) for r in stage_results(results)] == [
        ("sft", "loss/cross_entropy", 2.5),
        ("ppo", "words", Difference(**difference)),
    ]


def test_text_that_looks_like_markup_is_shown_as_it_is(tmp_path, capsys):
    run_dir = tmp_path / "run[bold]"
    for step in (0, 2):
        write_evaluation(run_dir, step, ["[INST] a :smile: [/INST] [red]b"], [1.0])
    assert main(["report", str(run_dir)]) == 0
    shown = capsys.readouterr().out
    for text in ("[INST] a :smile: [/INST] [red]b", "run[bold]", "[+0.000, +0.000]"):
        assert text in shown
