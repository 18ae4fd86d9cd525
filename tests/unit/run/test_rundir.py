"""What a run leaves on disk: its directory and lock, checkpoints that are whole or not there, trajectories and metrics."""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from subprocess import PIPE
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from rlhf_ray.actors.session import check_run_dir
from rlhf_ray.batch import from_sequences
from rlhf_ray.config import BadInput, apply_overrides, load, parse
from rlhf_ray.run import trajectories
from rlhf_ray.run.checkpoint import Checkpoints, verify
from rlhf_ray.run.directory import RunDir, differences
from rlhf_ray.run.metrics import JsonLines, Sinks, add, means
from tests.helpers import ROOT, rl_job


def job(directory, *overrides):
    """An RL job of this run directory."""
    return parse(apply_overrides(rl_job(), [f"run.dir={directory}", *overrides]), "job")


def begun(directory, *overrides):
    """A run that stopped after it had written something."""
    RunDir(job(directory, *overrides)).close()
    (directory / "metrics.jsonl").touch()


def names(directory):
    """Everything below a directory, as relative paths of files."""
    return sorted(str(f.relative_to(directory)) for f in directory.rglob("*") if f.is_file())


# the run directory ----------------------------------------------------------------------------------------------------


def test_a_second_run_in_the_same_directory_is_refused_and_told_who_holds_it(tmp_path):
    held = RunDir(job(tmp_path))
    with pytest.raises(BadInput, match=rf"in use by process {os.getpid()} on "):
        RunDir(job(tmp_path))
    held.close()
    held = RunDir(job(tmp_path))
    assert (tmp_path / ".lock").read_text().count("process") == 1  # the last holder, not all of them
    held.close()


def test_a_lock_lives_exactly_as_long_as_its_process(tmp_path):
    hold = """if True:
        import json, sys
        from rlhf_ray.config import parse
        from rlhf_ray.run.directory import RunDir
        held = RunDir(parse(json.loads(sys.argv[1]), "job"))
        print("held", flush=True)
        sys.stdin.read()
    """
    tree = job(tmp_path).model_dump_json()
    holder = subprocess.Popen([sys.executable, "-c", hold, tree], stdin=PIPE, stdout=PIPE, text=True, cwd=ROOT)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BadInput, match=rf"process {holder.pid} on "):
            RunDir(job(tmp_path))
    finally:
        holder.kill()
        holder.communicate(timeout=30)
    RunDir(job(tmp_path)).close()


def test_the_config_in_a_run_directory_makes_the_same_job(tmp_path):
    RunDir(job(tmp_path, "learner.lr=0.125")).close()
    assert load(tmp_path / "config.json") == job(tmp_path, "learner.lr=0.125")
    assert names(tmp_path) == [".lock", "config.json", "log.jsonl", "manifest.json"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("learner.lr=0.5", "learner.lr: 0.25 -> 0.5"),
        ("run.seed=2", "run.seed: 1 -> 2"),
        ("algorithm.kl.coef=0.75", "algorithm.kl.coef: 0.05 -> 0.75"),
        ("model.init.hidden_size=64", "model.init.hidden_size: 32 -> 64"),
        ("data.size=null", "data.size: 64 -> null"),
        ("model.init.vocab_size=99", "model.init.vocab_size: null -> 99"),
        ("rewards.terms.0.weight=2", '"weight": 2.0'),
        ("rewards.terms.0.name=other", '"name": "share"'),
    ],
)
def test_another_config_is_refused_by_key_with_old_and_new(tmp_path, override, says):
    begun(tmp_path, "learner.lr=0.25")
    before = {f.name: f.read_text() for f in tmp_path.glob("*.json")}
    with pytest.raises(BadInput) as refused:
        RunDir(job(tmp_path, "learner.lr=0.25", override))
    assert str(tmp_path) in str(refused.value)
    assert says in str(refused.value)
    assert {f.name: f.read_text() for f in tmp_path.glob("*.json")} == before


def test_a_run_that_was_refused_does_not_hold_the_directory(tmp_path):
    begun(tmp_path)
    with pytest.raises(BadInput, match="another config"):
        RunDir(job(tmp_path, "run.seed=2"))
    RunDir(job(tmp_path)).close()


@pytest.mark.parametrize(
    "overrides",
    [
        ["num_steps=50"],
        ["log.progress=false", "log.tensorboard=true"],
        ["checkpoint.every=3", "checkpoint.keep=7"],
        ["evaluate.every=3"],
        ["evaluate.data={path: heldout.jsonl, max_prompt_tokens: 8}"],
        ["cluster.deadline_s=7", "cluster.address=auto"],
        ["num_steps=1", "log.wandb=project", "cluster.max_restarts=0"],
    ],
)
def test_what_does_not_change_the_training_may_change(tmp_path, overrides):
    begun(tmp_path)
    RunDir(job(tmp_path, *overrides)).close()
    assert load(tmp_path / "config.json") == job(tmp_path, *overrides)


def test_a_run_directory_may_be_moved(tmp_path):
    RunDir(job(tmp_path / "here")).close()
    (tmp_path / "here").rename(tmp_path / "there")
    held = RunDir(job(tmp_path / "there"))
    assert held.path == tmp_path / "there"


def test_where_nothing_was_written_yet_another_config_may_try(tmp_path):
    RunDir(job(tmp_path, "data.path=no-such-file.jsonl")).close()
    RunDir(job(tmp_path, "learner.lr=0.5")).close()
    assert load(tmp_path / "config.json") == job(tmp_path, "learner.lr=0.5")


def test_the_first_three_differences_are_enough(tmp_path):
    begun(tmp_path)
    with pytest.raises(BadInput) as refused:
        RunDir(job(tmp_path, "critic.lr=9", "data.size=9", "data.seed=9", "run.seed=9", "learner.lr=9"))
    assert str(refused.value).count(" -> ") == 3


def test_a_file_in_the_way_of_the_run_directory_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(BadInput, match=r"run\.dir: cannot write to"):
        RunDir(job(tmp_path / "run"))


def test_the_manifest_says_what_ran_where_and_how_it_ended(tmp_path):
    held = RunDir(job(tmp_path, "run.seed=17"))
    assert json.loads((tmp_path / "manifest.json").read_text()) == held.state
    assert held.state["state"] == "running"
    held.record("finished", results={"loss": 0.5})
    made = json.loads((tmp_path / "manifest.json").read_text())
    assert (made["state"], made["job"], made["seed"], made["results"]) == ("finished", "ppo", 17, {"loss": 0.5})
    assert made["command"] == sys.argv
    assert made["versions"]["numpy"] == np.__version__
    assert made["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "ray", "deepspeed", "transformers"} <= set(made["versions"])
    assert made["hardware"]["cores"] == os.cpu_count()
    assert made["seconds"] >= 0
    assert "git_revision" in made
    assert not list(tmp_path.glob("*.tmp"))


def test_a_finished_stage_stays_finished_and_its_results_stay_with_it(tmp_path):
    held = RunDir(job(tmp_path))
    held.record("finished", results={"loss": 0.5})
    held.close()
    again = RunDir(job(tmp_path), keep_state=True)
    assert again.state["state"] == "finished"
    again.close()
    again = RunDir(job(tmp_path))
    assert (again.state["state"], again.state["results"]) == ("running", {"loss": 0.5})


def test_an_unfinished_stage_runs_again(tmp_path):
    held = RunDir(job(tmp_path))
    held.record("failed", error="ValueError: no")
    held.close()
    assert RunDir(job(tmp_path), keep_state=True).state["state"] == "running"


def test_a_run_that_ends_well_after_a_failure_no_longer_shows_the_error(tmp_path):
    held = RunDir(job(tmp_path))
    held.record("failed", error="ValueError: no")
    held.record("finished")
    assert "error" not in held.state


def test_differences_are_dotted_paths_with_old_and_new():
    old = {"a": {"b": 1, "c": [1, 2]}, "d": None, "e": "x"}
    assert differences(old, old) == []
    assert differences(old, {"a": {"b": 2, "c": [1, 3]}, "d": {"f": 1}, "e": "x"}) == [
        "a.b: 1 -> 2", "a.c: [1, 2] -> [1, 3]", 'd: null -> {"f": 1}',
    ]  # fmt: skip
    assert differences({"a": 1}, {"b": 1}) == ["a: 1 -> null", "b: null -> 1"]


@pytest.mark.parametrize("directory", ["runs/ppo", "ppo", "./ppo", "../shared/ppo"])
def test_a_relative_run_directory_is_refused_under_ray_job_submit(directory):
    with pytest.raises(BadInput, match=rf"run\.dir: '{directory}' is relative.*absolute"):
        check_run_dir(directory, submitted=True)
    check_run_dir(directory, submitted=False)


def test_a_run_directory_within_rays_session_is_refused_under_ray_job_submit():
    inside = "/tmp/ray/session_2026-01-01_00-00-00_000000_1/runtime_resources/working_dir_files/_ray_pkg_0/runs"
    with pytest.raises(BadInput, match="session directory"):
        check_run_dir(inside, submitted=True)
    check_run_dir("/shared/runs/ppo", submitted=True)


@pytest.mark.parametrize("inside", ["/tmp/ray/session_2026-01-01_00-00-00_000000_1/runs", "/tmp/ray/session_latest/x"])
def test_any_directory_within_rays_session_is_refused_under_ray_job_submit(inside):
    with pytest.raises(BadInput, match="session directory"):
        check_run_dir(inside, submitted=True)


# checkpoints ----------------------------------------------------------------------------------------------------------


def fill(directory):
    """Two files, one of them further down."""
    (directory / "learner").mkdir()
    (directory / "learner" / "weights").write_bytes(b"12345678")
    (directory / "notes.txt").write_text(directory.name.split(".")[0])


@pytest.fixture
def checkpoints(tmp_path):
    """checkpoints(keep) -> a writer that keeps so many, on one directory."""
    return lambda keep=2: Checkpoints(tmp_path / "checkpoints", keep)


def steps(found):
    return [int(path.name.removeprefix("step-")) for path in found]


def test_a_checkpoint_is_what_was_filled_in_the_state_and_a_manifest_of_both(checkpoints):
    path = checkpoints().write(12, fill, {"step": 12, "kl_coef": 0.5})
    assert path.name == "step-000012"
    assert names(path) == ["learner/weights", "manifest.json", "notes.txt", "state.json"]
    assert json.loads((path / "state.json").read_text()) == {"step": 12, "kl_coef": 0.5}
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 12
    assert sorted(manifest["files"]) == ["learner/weights", "notes.txt", "state.json"]
    assert manifest["files"]["learner/weights"] == {"size": 8, "sha256": hashlib.sha256(b"12345678").hexdigest()}
    assert verify(path) is None


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
        assert steps(store.complete()) == [1]

    assert store.write(2, look, {}) == store.latest()
    assert steps(store.complete()) == [1, 2]


def test_a_directory_without_a_manifest_does_not_exist(checkpoints):
    store = checkpoints()
    assert store.latest() is None
    fill(_made(store.directory / "step-000005"))
    assert store.complete() == []
    assert store.latest() is None
    store.write(3, fill, {})
    assert store.latest().name == "step-000003"


def _made(path):
    path.mkdir()
    return path


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(checkpoints, keep):
    store = checkpoints(keep)
    for step in (1, 2, 9, 10, 100):
        store.write(step, fill, {})
    assert steps(store.complete()) == [1, 2, 9, 10, 100][-keep:]
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
    assert steps(store.complete()) == [1]
    assert (store.latest() / "a").read_text() == "whole"
    assert [p.name for p in checkpoints().directory.iterdir()] == ["step-000001"]


def test_an_unfinished_checkpoint_with_a_manifest_is_removed_and_never_taken(checkpoints):
    store = checkpoints()
    left = store.write(7, fill, {}).rename(store.directory / "step-000007.tmp-12345678")
    assert store.complete() == []
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
    assert steps(store.complete()) == [1, 2]


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


# trajectories ---------------------------------------------------------------------------------------------------------


def batch(*lengths):
    tokens = [np.arange(n) for n in lengths]
    return from_sequences(
        tokens, response_mask=[t > 1 for t in tokens], rewards=np.arange(len(tokens)) / 2,
        reward_parts=np.arange(2 * len(tokens)).reshape(-1, 2), seed=np.array([2**63 + n for n in lengths], np.uint64),
    )  # fmt: skip


def test_trajectories_come_back_as_they_were_with_the_names_of_the_rewards(tmp_path):
    file, made = trajectories.path(tmp_path, 12), batch(3, 5, 2)
    assert file == tmp_path / "trajectories" / "step-000012.parquet"
    trajectories.write(file, made, ["truth", "length"])
    found = trajectories.read(file)
    assert found.columns() == made.columns()
    for name in made.columns():
        np.testing.assert_array_equal(getattr(found, name), getattr(made, name), err_msg=name)
        assert getattr(found, name).dtype == getattr(made, name).dtype
    named = pq.read_schema(file).metadata[b"reward_parts"]
    assert json.loads(named) == ["truth", "length"]


def test_trajectories_of_the_same_step_are_replaced_whole(tmp_path):
    file = trajectories.path(tmp_path, 0)
    trajectories.write(file, batch(3, 5), ["old", "older"])
    trajectories.write(file, batch(4), ["a", "b"])
    assert trajectories.read(file).lengths.tolist() == [4]
    assert names(tmp_path) == ["trajectories/step-000000.parquet"]


# metrics --------------------------------------------------------------------------------------------------------------


def test_sums_add_up_over_parts_and_divide_once():
    parts = [{"loss": (6.0, 2.0), "norm_max": 3}, {"loss": (1.0, 5.0)}, {"loss": (0, 0), "norm_max": 7, "once": (3, 4)}]
    total = add(parts)
    assert total == {"loss": (7.0, 7.0), "norm_max": 7.0, "once": (3.0, 4.0)}
    assert means(total) == {"loss": 1.0, "norm_max": 7.0, "once": 0.75}


def test_a_mean_does_not_depend_on_how_the_parts_were_cut():
    values, weights = np.arange(12.0), np.array([1.0, 3.0] * 6)
    whole = means({"x": (float(values @ weights), float(weights.sum()))})
    for cuts in ([6], [1, 2, 3], [5, 11]):
        pieces = zip(np.split(values, cuts), np.split(weights, cuts), strict=True)
        assert means(add({"x": (v @ w, w.sum())} for v, w in pieces)) == pytest.approx(whole)


def test_maxima_below_zero_and_numbers_of_other_types_become_floats():
    total = add([{"a_max": np.float32(-2), "b": (np.int64(1), np.float32(2))}, {"a_max": -3}])
    assert total == {"a_max": -2.0, "b": (1.0, 2.0)}
    assert all(type(x) is float for x in [total["a_max"], *total["b"]])


def test_what_nothing_was_weighed_for_is_left_out():
    assert means({"none": (0.0, 0.0), "some": (0.0, 1.0)}) == {"some": 0.0}
    assert means(add([])) == {}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_are_one_object_a_step_on_disk_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = JsonLines(path, keep=0)
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
    assert names(tmp_path) == ["metrics.jsonl"]


@pytest.mark.parametrize("torn", ['{"step": 2, "lo', '{"st', "{}", '{"step": 2'])
def test_a_line_cut_short_by_a_crash_is_cut_off(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n' + torn)
    sink = JsonLines(path, keep=3)
    sink.write(3, {})
    sink.close()
    assert lines(path) == [{"step": 0}, {"step": 1}, {"step": 3}]


def test_a_tracker_that_fails_is_left_out_and_the_file_is_not(tmp_path, caplog):
    called = []

    def fail(step, metrics):
        called.append(step)
        raise ConnectionError("no network")

    sinks = Sinks(tmp_path, 0, tensorboard=False, wandb=None, config={})
    sinks.trackers.append(SimpleNamespace(write=fail, close=lambda: None))
    for step in range(3):
        sinks.write(step, {"x": 1.0})
    sinks.close()
    assert called == [0]
    assert "no network" in caplog.text
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [0, 1, 2]


def test_a_run_needs_no_git(tmp_path, monkeypatch):
    """An image has none."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with RunDir(parse(rl_job(run={"dir": str(tmp_path / "run")}), "test")) as held:
        held.record("finished")
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["git_revision"] is None
