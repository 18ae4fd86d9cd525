"""What a run writes: checkpoints that are whole or do not exist, a run directory with one owner, metrics without repeats."""

import json
import math

import numpy as np
import pytest

from rlhf_ray.batch import from_sequences
from rlhf_ray.config import BadInput
from rlhf_ray.config.load import parse
from rlhf_ray.driver import trajectories
from rlhf_ray.driver.checkpoint import Checkpoints
from rlhf_ray.driver.rundir import RunDir
from rlhf_ray.driver.session import check_run_dir
from rlhf_ray.metrics import JsonLines, add, means
from tests.helpers import rl_job


def fill(text):
    def write(directory):
        (directory / "learner").mkdir()
        (directory / "learner" / "shard").write_text(text)

    return write


def test_a_checkpoint_is_found_with_its_state(tmp_path):
    store = Checkpoints(tmp_path, keep=2)
    assert store.latest() is None
    path = store.write(3, fill("a"), {"step": 3})
    assert store.latest() == path == tmp_path / "step-000003"
    assert json.loads((path / "state.json").read_text()) == {"step": 3}
    files = json.loads((path / "manifest.json").read_text())["files"]
    assert set(files) == {"learner/shard", "state.json"}
    assert files["learner/shard"]["size"] == 1


def test_the_newest_are_kept(tmp_path):
    store = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        store.write(step, fill(str(step)), {})
    assert [p.name for p in store.complete()] == ["step-000002", "step-000003"]


def test_a_failure_while_writing_leaves_the_old_one_and_nothing_else(tmp_path):
    store = Checkpoints(tmp_path, keep=1)
    old = store.write(1, fill("a"), {})

    def broken(directory):
        fill("b")(directory)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.write(2, broken, {})
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]
    assert store.latest() == old


def test_a_directory_without_manifest_does_not_exist(tmp_path):
    store = Checkpoints(tmp_path, keep=3)
    old = store.write(1, fill("a"), {})
    (store.write(2, fill("b"), {}) / "manifest.json").unlink()
    assert store.latest() == old


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_checkpoint_is_passed_over_and_never_a_fresh_start(tmp_path, damage):
    store = Checkpoints(tmp_path, keep=3)
    old = store.write(1, fill("a"), {})
    for path, expect in ((store.write(2, fill("bb"), {}), old), (old, None)):
        shard = path / "learner" / "shard"
        shard.unlink() if damage == "gone" else shard.write_text(
            {"changed": "c" * shard.stat().st_size, "cut": ""}[damage]
        )
        if expect is not None:
            assert store.latest() == expect
    with pytest.raises(RuntimeError, match="all 2 checkpoints are damaged"):
        store.latest()


def test_what_a_crash_left_is_removed(tmp_path):
    (tmp_path / "step-000001.tmp-1234").mkdir()
    Checkpoints(tmp_path, keep=1)
    assert not list(tmp_path.iterdir())


def job(tmp_path, **changes):
    return parse(rl_job(run={"dir": str(tmp_path / "run"), "seed": 1}, **changes), "job")


def test_a_run_directory_has_one_owner(tmp_path):
    held = RunDir(job(tmp_path))
    with pytest.raises(BadInput, match="in use by process"):
        RunDir(job(tmp_path))
    held.close()
    RunDir(job(tmp_path)).close()


def test_another_config_is_refused_by_key_and_values(tmp_path):
    RunDir(job(tmp_path)).close()
    with pytest.raises(BadInput, match=r"learner\.lr: 0\.001 -> 0\.002"):
        RunDir(job(tmp_path, learner={"lr": 2e-3, "micro_batch_tokens": 256}))


def test_more_steps_and_other_logging_go_on_in_the_same_directory(tmp_path):
    RunDir(job(tmp_path)).close()
    RunDir(job(tmp_path, num_steps=9, log={"tensorboard": True}, checkpoint={"keep": 5})).close()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["num_steps"] == 9


def test_the_manifest_says_what_ran_and_how_it_ended(tmp_path):
    held = RunDir(job(tmp_path))
    assert held.state["state"] == "running"
    held.record("finished", results={"x": 1})
    assert {"versions", "git_revision", "seed", "hardware", "command", "seconds"} <= set(held.state)
    assert held.state["state"] == "finished"
    assert held.state["results"] == {"x": 1}
    held.close()


@pytest.mark.parametrize("path", ["runs/x", "/tmp/ray/session_1/runtime_resources/working_dir_files/x"])
def test_a_submitted_job_needs_a_place_that_stays(path):
    check_run_dir(path, submitted=False)
    with pytest.raises(BadInput, match=r"run\.dir"):
        check_run_dir(path, submitted=True)
    check_run_dir("/shared/runs/x", submitted=True)


def test_resumed_metrics_repeat_no_step(tmp_path):
    file = tmp_path / "metrics.jsonl"
    first = JsonLines(file, 0)
    for step in range(4):
        first.write(step, {"a": step, "bad": math.nan})
    first.close()
    with file.open("a") as broken:
        broken.write('{"step": 4, "a"')
    again = JsonLines(file, 2)
    again.write(2, {"a": 20})
    again.close()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["step"], line["a"]) for line in lines] == [(0, 0), (1, 1), (2, 20)]
    assert lines[0]["bad"] is None


def test_sums_of_ranks_become_weighted_means_and_maxima():
    total = add([{"loss": (3.0, 2.0), "r_max": 1.0}, {"loss": (1.0, 2.0), "r_max": 4.0, "none": (0.0, 0.0)}])
    assert means(total) == {"loss": 1.0, "r_max": 4.0}


def test_trajectories_are_read_as_they_were_written(tmp_path):
    batch = from_sequences(
        [np.arange(3), np.arange(2)], reward_parts=np.array([[0.5, 1.0], [2.0, 3.0]]), rewards=np.array([1.5, 5.0])
    )
    path = trajectories.path(tmp_path, 12)
    assert path == tmp_path / "trajectories" / "step-000012.parquet"
    trajectories.write(path, batch, ["model", "length"])
    again = trajectories.read(path)
    assert again.columns() == batch.columns()
    np.testing.assert_array_equal(again.reward_parts, batch.reward_parts)
    np.testing.assert_array_equal(again.tokens, batch.tokens)
