"""One run id everywhere, and the log of a run."""

import json
import logging

import pytest

from rlhf_ray.config import parse
from rlhf_ray.run.checkpoint import Checkpoints
from rlhf_ray.run.directory import RunDir
from rlhf_ray.run.events import TerminalHandler, notice
from rlhf_ray.run.sinks import JsonLines, Sinks, StepEvents, TensorBoard
from tests.helpers import rl_job


def opened(directory, **options):
    return RunDir(parse(rl_job(run={"dir": str(directory), "seed": 1}), "job"), **options)


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_an_id_is_made_once_and_is_everywhere(tmp_path):
    run = opened(tmp_path / "my run")
    assert run.id.startswith("my_run-")
    openers = {
        "log.jsonl": lambda: StepEvents(run.events),
        "TensorBoard": lambda: TensorBoard(run.path / "tensorboard", 0, run.id),
    }
    sinks = Sinks(JsonLines(run.path / "metrics.jsonl", 0, run.id), openers)
    sinks.write(0, {"time/step": 1.25})
    sinks.close()
    kept = Checkpoints(run.path / "checkpoints", 1, run.id).write(1, lambda directory: None, {})
    run.close()
    assert json.loads((run.path / "manifest.json").read_text())["run_id"] == run.id
    assert json.loads((kept / "manifest.json").read_text())["run_id"] == run.id
    assert {line["run_id"] for name in ("metrics.jsonl", "log.jsonl") for line in lines(run.path / name)} == {run.id}
    assert next((run.path / "tensorboard").iterdir()).name.endswith(f".{run.id}")
    again = opened(tmp_path / "my run")
    assert again.id == run.id
    again.close()
    other = opened(tmp_path / "another")
    assert other.id != run.id
    other.close()


def test_a_stages_id_begins_with_the_pipelines(tmp_path):
    outer = opened(tmp_path)
    inner = opened(tmp_path / "sft", parent_id=outer.id)
    notice("from the stage")
    inner.close()
    notice("from the pipeline")
    outer.close()
    assert inner.id.startswith(f"{outer.id}.sft-")
    said = [line["message"] for line in lines(tmp_path / "sft" / "log.jsonl")]
    assert "from the stage" in said
    assert "from the pipeline" not in said
    assert {"from the stage", "from the pipeline"} <= {line["message"] for line in lines(tmp_path / "log.jsonl")}


def test_a_line_has_time_level_id_stage_and_step(tmp_path):
    run = opened(tmp_path)
    run.events.at(stage="learn", step=7)
    notice("learner worker 1 died")
    logging.getLogger("rlhf_ray.train").warning("slow: %s", "disk")
    logging.getLogger("elsewhere").warning("not ours")
    StepEvents(run.events).write(7, {"time/step": 1.25, "reward/mean": 0.5})
    run.close()
    notice("after the run")
    events = lines(tmp_path / "log.jsonl")[1:]
    assert [(x["level"], x["message"], x["stage"], x["step"]) for x in events] == [
        ("INFO", "learner worker 1 died", "learn", 7),
        ("WARNING", "slow: disk", "learn", 7),
        ("INFO", "step finished", "learn", 7),
    ]
    assert events[2]["seconds"] == 1.25
    assert events[0]["time"].endswith("+00:00")
    assert set(events[0]) == {"time", "level", "run_id", "job", "stage", "step", "message"}


def test_a_notice_is_on_the_terminal_only_while_a_command_runs(tmp_path, capsys):
    notice("before")
    terminal = TerminalHandler()
    run = opened(tmp_path)
    notice("learner worker 1 died")
    logging.getLogger("rlhf_ray.train").info("for the log alone")
    run.close()
    notice("after the run")
    terminal.close()
    notice("after the command")
    assert capsys.readouterr().out == "learner worker 1 died\nafter the run\n"
    assert not logging.getLogger("rlhf_ray").isEnabledFor(logging.INFO)
    messages = [line["message"] for line in lines(tmp_path / "log.jsonl")]
    assert messages == ["the run is running", "learner worker 1 died", "for the log alone"]


def test_what_ended_a_run_is_in_its_log_without_what_a_user_wrote(tmp_path):
    with pytest.raises(ValueError, match="secret"), opened(tmp_path):
        raise ValueError("cannot score 'my secret prompt'")
    text = (tmp_path / "log.jsonl").read_text()
    assert "secret" not in text
    errors = [line["message"] for line in lines(tmp_path / "log.jsonl") if line["level"] == "ERROR"]
    assert [e.partition(".py:")[0] for e in errors] == ["failed: ValueError at test_events"]
    assert "secret" in json.loads((tmp_path / "manifest.json").read_text())["error"]
