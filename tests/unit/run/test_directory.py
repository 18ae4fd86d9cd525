"""The run directory: who holds it, which job may continue in it, and what its manifest says."""

import json
import os
import subprocess
import sys
from subprocess import PIPE

import numpy as np
import pytest

from rlhf_ray.api import Run
from rlhf_ray.config import BadInput, apply_overrides, load_job, parse
from rlhf_ray.run.directory import RunDir, correct_state, differences
from tests.helpers import ROOT, rl_job


def job(directory, *overrides):
    """An RL job of this run directory."""
    return parse(apply_overrides(rl_job(), [f"run.dir={directory}", *overrides]), "job")


def write_something(directory, *overrides):
    """A run that stopped after it had written something."""
    RunDir(job(directory, *overrides)).close()
    (directory / "metrics.jsonl").write_text('{"step": 0}\n')


def names(directory):
    """Everything below a directory, as relative paths of files."""
    return sorted(str(f.relative_to(directory)) for f in directory.rglob("*") if f.is_file())


def test_a_second_run_in_the_same_directory_is_refused_and_told_who_holds_it(tmp_path):
    run = RunDir(job(tmp_path))
    with pytest.raises(BadInput, match=rf"in use by process {os.getpid()} on "):
        RunDir(job(tmp_path))
    run.close()
    run = RunDir(job(tmp_path))
    assert (tmp_path / ".lock").read_text().count("process") == 1  # the last holder, not all of them
    run.close()


def test_a_lock_lives_exactly_as_long_as_its_process(tmp_path):
    hold = """if True:
        import json, sys
        from rlhf_ray.config import parse
        from rlhf_ray.run.directory import RunDir
        run = RunDir(parse(json.loads(sys.argv[1]), "job"))
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


def test_a_run_whose_process_vanished_is_corrected_and_one_that_is_going_is_not(tmp_path):
    code = f"""if True:
        import os
        from rlhf_ray.run.directory import RunDir
        from tests.unit.run.test_directory import job
        from pathlib import Path
        RunDir(job(Path({str(tmp_path)!r})))
        os._exit(9)  # as SIGKILL ends it
    """
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=60)
    assert json.loads((tmp_path / "manifest.json").read_text())["state"] == "running"
    assert Run(tmp_path).state == "failed"
    assert "ended without a record of how" in json.loads((tmp_path / "manifest.json").read_text())["error"]
    with RunDir(job(tmp_path)) as run:
        assert Run(tmp_path).state == "running"
        assert "error" not in run.manifest


def test_the_next_command_logs_that_the_one_before_vanished(tmp_path):
    RunDir(job(tmp_path)).close()
    assert "ended without a record" not in (tmp_path / "log.jsonl").read_text()
    RunDir(job(tmp_path)).close()
    assert "the command before this one ended without a record of how" in (tmp_path / "log.jsonl").read_text()


def test_a_directory_without_a_run_is_left_alone(tmp_path):
    correct_state(tmp_path)
    assert names(tmp_path) == []


def test_the_config_in_a_run_directory_makes_the_same_job(tmp_path):
    RunDir(job(tmp_path, "learner.lr=0.125")).close()
    assert load_job(tmp_path / "config.json") == job(tmp_path, "learner.lr=0.125")
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
    write_something(tmp_path, "learner.lr=0.25")
    before = {f.name: f.read_text() for f in tmp_path.glob("*.json")}
    with pytest.raises(BadInput) as refused:
        RunDir(job(tmp_path, "learner.lr=0.25", override))
    assert str(tmp_path) in str(refused.value)
    assert says in str(refused.value)
    assert {f.name: f.read_text() for f in tmp_path.glob("*.json")} == before


def test_a_run_that_was_refused_does_not_hold_the_directory(tmp_path):
    write_something(tmp_path)
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
    write_something(tmp_path)
    RunDir(job(tmp_path, *overrides)).close()
    assert load_job(tmp_path / "config.json") == job(tmp_path, *overrides)


def test_a_run_directory_may_be_moved(tmp_path):
    RunDir(job(tmp_path / "here")).close()
    (tmp_path / "here").rename(tmp_path / "there")
    run = RunDir(job(tmp_path / "there"))
    assert run.path == tmp_path / "there"


def test_where_nothing_was_written_yet_another_config_may_try(tmp_path):
    RunDir(job(tmp_path, "data.path=no-such-file.jsonl")).close()
    RunDir(job(tmp_path, "learner.lr=0.5")).close()
    assert load_job(tmp_path / "config.json") == job(tmp_path, "learner.lr=0.5")


def test_a_run_that_failed_before_its_first_step_gives_its_directory_back(tmp_path):
    RunDir(job(tmp_path)).close()
    for name in ("init", "evaluations"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "of_the_old_options").touch()
    (tmp_path / "metrics.jsonl").touch()
    RunDir(job(tmp_path)).close()
    assert (tmp_path / "init" / "of_the_old_options").exists()  # the same options go on with it
    RunDir(job(tmp_path, "model.init.hidden_size=64")).close()
    assert not (tmp_path / "init").exists()
    assert not (tmp_path / "evaluations").exists()


@pytest.mark.parametrize("output", ["checkpoints/step-000001", "model", "sft/manifest.json", "kept.jsonl"])
def test_a_run_with_a_result_keeps_its_directory(tmp_path, output):
    RunDir(job(tmp_path)).close()
    (tmp_path / output).mkdir(parents=True)
    with pytest.raises(BadInput, match="another config"):
        RunDir(job(tmp_path, "run.seed=2"))


def test_the_first_three_differences_are_enough(tmp_path):
    write_something(tmp_path)
    with pytest.raises(BadInput) as refused:
        RunDir(job(tmp_path, "critic.lr=9", "data.size=9", "data.seed=9", "run.seed=9", "learner.lr=9"))
    assert str(refused.value).count(" -> ") == 3


def test_a_file_in_the_way_of_the_run_directory_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(BadInput, match=r"run\.dir: cannot write to"):
        RunDir(job(tmp_path / "run"))


def test_the_manifest_says_what_ran_where_and_how_it_ended(tmp_path):
    run = RunDir(job(tmp_path, "run.seed=17"))
    assert json.loads((tmp_path / "manifest.json").read_text()) == run.manifest
    assert run.manifest["state"] == "running"
    run.record("finished", results={"loss": 0.5})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["state"], manifest["job"], manifest["seed"], manifest["results"]) == (
        "finished",
        "ppo",
        17,
        {"loss": 0.5},
    )
    assert manifest["command"] == sys.argv
    assert manifest["versions"]["numpy"] == np.__version__
    assert manifest["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "ray", "deepspeed", "transformers"} <= set(manifest["versions"])
    assert manifest["hardware"]["cores"] == os.cpu_count()
    assert manifest["seconds"] >= 0
    assert "git_revision" in manifest
    assert not list(tmp_path.glob("*.tmp"))


def test_a_finished_stage_stays_finished_and_its_results_stay_with_it(tmp_path):
    run = RunDir(job(tmp_path))
    run.record("finished", results={"loss": 0.5})
    run.close()
    again = RunDir(job(tmp_path), keep_finished=True)
    assert again.manifest["state"] == "finished"
    again.close()
    again = RunDir(job(tmp_path))
    assert (again.manifest["state"], again.manifest["results"]) == ("running", {"loss": 0.5})


def test_an_unfinished_stage_runs_again(tmp_path):
    run = RunDir(job(tmp_path))
    run.record("failed", error="ValueError: no")
    run.close()
    assert RunDir(job(tmp_path), keep_finished=True).manifest["state"] == "running"


def test_a_run_that_ends_well_after_a_failure_no_longer_shows_the_error(tmp_path):
    run = RunDir(job(tmp_path))
    run.record("failed", error="ValueError: no")
    run.record("finished")
    assert "error" not in run.manifest


@pytest.mark.parametrize("content", ["", '{"job":', "[]"])
@pytest.mark.parametrize("name", ["config.json", "manifest.json", "usage.json"])
def test_a_damaged_file_is_refused_in_one_sentence_and_the_directory_is_free_again(tmp_path, name, content):
    write_something(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=rf"{name}: damaged, .*; restore it, or remove it"):
        RunDir(job(tmp_path))
    (tmp_path / name).unlink()
    RunDir(job(tmp_path)).close()


def test_differences_are_dotted_paths_with_old_and_new():
    old = {"a": {"b": 1, "c": [1, 2]}, "d": None, "e": "x"}
    assert differences(old, old) == []
    assert differences(old, {"a": {"b": 2, "c": [1, 3]}, "d": {"f": 1}, "e": "x"}) == [
        "a.b: 1 -> 2",
        "a.c: [1, 2] -> [1, 3]",
        'd: null -> {"f": 1}',
    ]
    assert differences({"a": 1}, {"b": 1}) == ["a: 1 -> null", "b: null -> 1"]


def test_a_run_needs_no_git(tmp_path, monkeypatch):
    """An image has none."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with RunDir(parse(rl_job(run={"dir": str(tmp_path / "run")}), "test")) as run:
        run.record("finished")
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["git_revision"] is None
