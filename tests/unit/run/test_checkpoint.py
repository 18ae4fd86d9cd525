"""Checkpoints are there whole, or not at all; a damaged one is passed over, loudly."""

import hashlib
import json
import signal
import subprocess
import sys

import pytest

from rlhf_ray.run.checkpoint import Checkpoints, find_damage
from tests.helpers import ROOT


def names(directory):
    """Everything below a directory, as relative paths of files."""
    return sorted(str(f.relative_to(directory)) for f in directory.rglob("*") if f.is_file())


def fill(directory):
    """Two files, one of them further down."""
    (directory / "learner").mkdir()
    (directory / "learner" / "weights").write_bytes(b"12345678")
    (directory / "notes.txt").write_text(directory.name.split(".")[0])


@pytest.fixture
def checkpoints(tmp_path):
    """checkpoints(keep) -> a writer that keeps so many, on one directory."""
    return lambda keep=2: Checkpoints(tmp_path / "checkpoints", keep)


def steps(paths):
    return [int(path.name.removeprefix("step-")) for path in paths]


def test_a_checkpoint_is_what_was_filled_in_the_state_and_a_manifest_of_both(checkpoints):
    path = checkpoints().write(12, fill, {"step": 12, "kl_coef": 0.5})
    assert path.name == "step-000012"
    assert names(path) == ["learner/weights", "manifest.json", "notes.txt", "state.json"]
    assert json.loads((path / "state.json").read_text()) == {"step": 12, "kl_coef": 0.5}
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 12
    assert sorted(manifest["files"]) == ["learner/weights", "notes.txt", "state.json"]
    assert manifest["files"]["learner/weights"] == {"size": 8, "sha256": hashlib.sha256(b"12345678").hexdigest()}
    assert find_damage(path) is None


def test_what_fill_learns_is_in_the_state(checkpoints):
    state = {"step": 1}
    path = checkpoints().write(1, lambda directory: state.update(rollouts=3), state)
    assert json.loads((path / "state.json").read_text()) == {"step": 1, "rollouts": 3}


def test_nothing_of_an_unfinished_checkpoint_can_be_seen(checkpoints):
    store = checkpoints()
    store.write(1, fill, {})

    def look(directory):
        fill(directory)
        assert not (directory / "manifest.json").exists()
        assert not (store.directory / "step-000002").exists()
        assert store.latest().name == "step-000001"
        assert steps(store.paths()) == [1]

    assert store.write(2, look, {}) == store.latest()
    assert steps(store.paths()) == [1, 2]


def test_a_directory_without_a_manifest_does_not_exist(checkpoints):
    store = checkpoints()
    assert store.latest() is None
    fill(made_directory(store.directory / "step-000005"))
    assert store.paths() == []
    assert store.latest() is None
    store.write(3, fill, {})
    assert store.latest().name == "step-000003"


def made_directory(path):
    path.mkdir()
    return path


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(checkpoints, keep):
    store = checkpoints(keep)
    for step in (1, 2, 9, 10, 100):
        store.write(step, fill, {})
    assert steps(store.paths()) == [1, 2, 9, 10, 100][-keep:]
    assert len(list(store.directory.iterdir())) == keep
    assert store.latest().name == "step-000100"


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), SystemExit(1)])
def test_a_failure_while_filling_leaves_the_old_one_and_nothing_half_written(checkpoints, error):
    store = checkpoints(1)
    store.write(1, fill, {})

    def fail(directory):
        fill(directory)
        raise error

    with pytest.raises(type(error)):
        store.write(2, fail, {})
    assert [p.name for p in store.directory.iterdir()] == ["step-000001"]
    assert store.latest().name == "step-000001"


def test_a_state_that_is_no_json_leaves_the_old_one_too(checkpoints):
    store = checkpoints(1)
    store.write(1, fill, {})
    with pytest.raises(TypeError):
        store.write(2, fill, {"tensor": object()})
    assert [p.name for p in store.directory.iterdir()] == ["step-000001"]


def test_a_process_killed_while_filling_leaves_the_old_one(checkpoints):
    store = checkpoints(1)
    kill = f"""if True:
        import os, pathlib, signal
        from rlhf_ray.run.checkpoint import Checkpoints
        store = Checkpoints(pathlib.Path({str(store.directory)!r}), 1)
        store.write(1, lambda d: (d / "a").write_text("whole"), {{}})
        store.write(2, lambda d: ((d / "a").write_text("half"), os.kill(os.getpid(), signal.SIGKILL)), {{}})
    """
    done = subprocess.run([sys.executable, "-c", kill], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert len(list(store.directory.iterdir())) == 2
    assert steps(store.paths()) == [1]
    assert (store.latest() / "a").read_text() == "whole"
    assert [p.name for p in checkpoints().directory.iterdir()] == ["step-000001"]


def test_an_unfinished_checkpoint_with_a_manifest_is_removed_and_never_taken(checkpoints):
    store = checkpoints()
    left = store.write(7, fill, {}).rename(store.directory / "step-000007.tmp-12345678")
    assert store.paths() == []
    assert store.latest() is None
    checkpoints()
    assert not left.exists()


DAMAGE = {
    "cut": lambda p: (p / "learner" / "weights").write_bytes(b"1234"),
    "flipped": lambda p: (p / "learner" / "weights").write_bytes(b"12345679"),
    "gone": lambda p: (p / "notes.txt").unlink(),
    "state": lambda p: (p / "state.json").write_text("{ }"),
    "no manifest": lambda p: (p / "manifest.json").write_text(""),
    "half a manifest": lambda p: (p / "manifest.json").write_text((p / "manifest.json").read_text()[:-9]),
    "another manifest": lambda p: (p / "manifest.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_loudly(checkpoints, caplog, damage):
    store = checkpoints(3)
    for step in (1, 2, 3):
        store.write(step, fill, {})
    assert store.latest().name == "step-000003"
    assert caplog.text == ""
    damage(store.directory / "step-000003")
    assert store.latest().name == "step-000002"
    assert "step-000003 is damaged" in caplog.text


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_afresh(checkpoints):
    store = checkpoints()
    for step in (1, 2):
        DAMAGE["cut"](store.write(step, fill, {}))
    with pytest.raises(RuntimeError, match="all 2 checkpoints are damaged"):
        store.latest()


def test_the_same_step_written_again_replaces_the_damaged_one(checkpoints):
    store = checkpoints()
    store.write(1, fill, {})
    DAMAGE["gone"](store.write(2, fill, {}))
    store.write(2, lambda directory: (directory / "new").write_text("x"), {})
    assert names(store.latest()) == ["manifest.json", "new", "state.json"]
    assert steps(store.paths()) == [1, 2]


def test_a_manifest_that_is_no_mapping_is_damage_too(checkpoints):
    store = checkpoints()
    store.write(1, fill, {})
    (store.write(2, fill, {}) / "manifest.json").write_text("[]")
    assert store.latest().name == "step-000001"


def test_a_new_checkpoint_is_kept_although_damaged_ones_have_higher_steps(checkpoints):
    store = checkpoints(2)
    store.write(6, fill, {})
    DAMAGE["cut"](store.write(12, fill, {}))
    store = checkpoints(1)  # keep may change between runs
    assert store.latest().name == "step-000006"
    assert store.write(8, fill, {}).exists()
    assert store.latest().name == "step-000008"


def test_steps_beyond_a_million_are_in_order(checkpoints):
    store = checkpoints(1)
    store.write(999_999, fill, {})
    assert store.write(1_000_000, fill, {}).exists()
    assert store.latest().name == "step-1000000"
