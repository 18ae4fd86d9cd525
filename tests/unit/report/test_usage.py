"""What `report` says of a run's usage and cost."""

import json

import pytest

from rlhf_ray.cli import main
from rlhf_ray.report.usage import report_usage, summarise
from rlhf_ray.run.usage import Devices, StepUsage, Usage

DEVICES = Devices("GPU", 8.0, {"learner": (1.0, 2), "rollout": (2.0, 3), "reward": (0.0, 1)})
STAGES = {"rollout": 10.0, "annotate": 2.0, "learn": 4.0, "sync": 1.0, "wait": 0.5}
FIRST = StepUsage(wall_s=20.0, stages=STAGES, tokens=1000.0, engines_s=24.0, reward=0.5)
SECOND = StepUsage(wall_s=10.0, stages={"learn": 10.0}, tokens=500.0, reward=0.75)


@pytest.fixture
def pipeline(tmp_path):
    """The run directory of a pipeline with two stages of the same usage."""
    usage = Usage().with_step(DEVICES, FIRST, 3.6).with_step(DEVICES, SECOND, 3.6)
    for stage in ("sft", "ppo"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "usage.json").write_text(json.dumps(usage.to_json()))
    return tmp_path


def test_a_run_has_a_row_for_each_stage_the_most_expensive_first(pipeline):
    report = report_usage(pipeline / "ppo")
    assert (report.title, report.parts) == ("ppo: 8 GPUs, 2 steps", "stage")
    assert [row.name for row in report.rows] == ["learn", "rollout", "other", "annotate", "sync", "wait", "all"]
    learn = report.rows[0]
    assert (learn.device_seconds, learn.seconds_per_step) == (112.0, 56.0)
    assert (learn.share, learn.cost) == pytest.approx((112 / 240, 0.112))


def test_a_pipeline_has_a_row_for_each_run_and_no_summary(pipeline):
    report = report_usage(pipeline)
    assert report.parts == "run"
    assert sorted(row.name for row in report.rows[:2]) == ["ppo", "sft"]
    assert (report.rows[-1].name, report.rows[-1].device_seconds) == ("all", 480.0)
    assert report.summary is None


def test_nothing_counted_is_no_report(tmp_path):
    assert report_usage(tmp_path) is None


def test_the_command_prints_a_run_and_a_pipeline(pipeline, capsys):
    assert main(["report", str(pipeline / "ppo")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("8 GPUs, 2 steps", "learn │ 112.0 │ 56.00 │ 47% │ 0.1120", "all │ 240.0 │ 120.00 │ 100% │ 0.2400"):
        assert text in shown
    assert "1500 tokens in 30 s" in shown
    assert "a point of reward (+0.250 since the first step): 960 GPU-seconds, cost 0.9600" in shown
    assert main(["report", str(pipeline)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "sft │ 240.0 │ 120.00 │ 50% │ 0.2400" in shown
    assert "all │ 480.0 │ 120.00 │ 100% │ 0.4800" in shown


@pytest.mark.parametrize(("rise", "shown"), [(-0.2, False), (0.0, False), (0.0004, False), (0.0006, True), (0.3, True)])
def test_a_point_of_reward_has_a_price_only_if_the_rise_is_not_shown_as_zero(rise, shown):
    usage = Usage(device="GPU", devices=1.0, steps=2, device_seconds=10.0, first_reward=0.5, reward=0.5 + rise)
    assert ("a point of reward" in summarise(usage)) == shown
    assert "+0.000" not in summarise(usage)
