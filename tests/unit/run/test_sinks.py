"""Where metrics go: one line a step in metrics.jsonl, and trackers that may fail."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from rlhf_ray.run.sinks import JsonLines, Sinks


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_are_one_object_a_step_on_disk_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = JsonLines(path, 0)
    sink.write(0, {"policy/kl": 0.5, "n": np.float32(2)})
    sink.write(1, {"nan": math.nan, "inf": -math.inf})
    assert lines(path) == [{"step": 0, "policy/kl": 0.5, "n": 2.0}, {"step": 1, "nan": None, "inf": None}]
    sink.close()


@pytest.mark.parametrize("keep", [0, 1, 3, 5, 9])
def test_a_resumed_run_repeats_no_step(tmp_path, keep):
    path = tmp_path / "metrics.jsonl"
    first = JsonLines(path, 0)
    for step in range(5):
        first.write(step, {"run": 1})
    first.close()
    second = JsonLines(path, keep)
    for step in range(keep, 7):
        second.write(step, {"run": 2})
    second.close()
    expected = [(s, 1) for s in range(min(keep, 5))] + [(s, 2) for s in range(keep, 7)]
    assert [(line["step"], line["run"]) for line in lines(path)] == expected
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("torn", ['{"step": 2, "lo', '{"st', "{}", '{"step": 2'])
def test_a_line_cut_short_by_a_crash_is_cut_off(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n' + torn)
    sink = JsonLines(path, 3)
    sink.write(3, {})
    sink.close()
    assert lines(path) == [{"step": 0}, {"step": 1}, {"step": 3}]


def failing_tracker(steps):
    """A tracker that notes the steps it is given, and fails."""

    def write(step, metrics):
        steps.append(step)
        raise ConnectionError("no network")

    return SimpleNamespace(write=write, close=lambda: None)


def test_a_tracker_that_fails_is_left_out_and_the_file_is_not(tmp_path, caplog):
    steps = []
    sinks = Sinks(JsonLines(tmp_path / "metrics.jsonl", 0), {"tracker": lambda: failing_tracker(steps)})
    for step in range(3):
        sinks.write(step, {"x": 1.0})
    sinks.close()
    assert steps == [0]
    assert "tracker failed and is left out from now on: no network" in caplog.text
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [0, 1, 2]


def test_a_tracker_that_cannot_be_opened_is_left_out(tmp_path, caplog):
    def refuse():
        raise RuntimeError("no API key\nand many more lines")

    sinks = Sinks(JsonLines(tmp_path / "metrics.jsonl", 0), {"tracker": refuse})
    sinks.write(0, {"x": 1.0})
    sinks.close()
    assert "tracker cannot be opened and is left out: no API key" in caplog.text
    assert "many more lines" not in caplog.text
    assert len(lines(tmp_path / "metrics.jsonl")) == 1
