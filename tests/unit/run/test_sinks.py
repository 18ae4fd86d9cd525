"""Where metrics go: one line a step in metrics.jsonl, and trackers that may fail."""

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from rlhf_ray.config import parse
from rlhf_ray.run.directory import RunDir
from rlhf_ray.run.sinks import JsonLines, Sinks, open_sinks
from tests.helpers import ROOT, rl_job


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


def test_a_tracker_that_fails_to_close_is_a_warning(tmp_path, caplog):
    def fail():
        raise ConnectionError("still no network")

    tracker = SimpleNamespace(write=lambda step, metrics: None, close=fail)
    Sinks(JsonLines(tmp_path / "metrics.jsonl", 0), {"tracker": lambda: tracker}).close()
    assert caplog.messages == ["tracker failed when it was closed: still no network"]


def test_weights_and_biases_that_cannot_start_is_one_warning(tmp_path, caplog, monkeypatch):
    (tmp_path / "wandb.py").write_text("def init(**options):\n    raise RuntimeError('api_key not configured')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    log = {"wandb": "project", "prometheus": False}
    job = parse(rl_job(run={"dir": str(tmp_path / "run")}, log=log), "job")
    with RunDir(job) as run:
        sinks = open_sinks(job, run, 0)
        sinks.write(0, {"time/step": 1.0})
        sinks.close()
    monkeypatch.delitem(sys.modules, "wandb")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["Weights & Biases cannot be opened and is left out: api_key not configured"]
    assert [line["step"] for line in lines(run.path / "metrics.jsonl")] == [0]


def test_sinks_import_neither_ray_nor_torch():
    code = "import sys, rlhf_ray.run.sinks; assert not {'ray', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)
