"""`rlhf-ray plan` as a user runs it: the verdict, what would help, and what is refused."""

import json

import pytest

from rlhf_ray.cli import main
from rlhf_ray.plan import text as plan
from tests.helpers import rl_job
from tests.unit.plan.published import GIANTS


def written(tmp_path, values, **changes):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(values))
    job = rl_job(algorithm={"type": "grpo"}, **changes)
    job["model"] = {"path": str(tmp_path / "model"), "dtype": "bfloat16"}
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(job))
    return str(file)


def test_plan_says_yes_and_where_the_time_goes(tmp_path, capsys):
    file = written(tmp_path, GIANTS["qwen2-7b"])
    assert main(["plan", file, "--gpus", "8xH100-80GB", "learner.num_workers=8", "rollout.num_workers=8"]) == 0
    found = capsys.readouterr().out
    for text in (
        "7.62 B parameters",
        "memory of each learner worker: weights 14.2 GiB",
        "bottleneck: ",
        "yes: it fits, with ",
    ):
        assert text in found


def test_plan_says_no_and_what_would_do(tmp_path, capsys):
    file = written(tmp_path, GIANTS["qwen2-7b"])
    line = ["plan", file, "--gpus", "8xA100-40GB", "learner.num_workers=8", "rollout.engine.dtype=bfloat16"]
    assert main(line) == 1
    found = capsys.readouterr().out.splitlines()[-1]
    assert found.startswith("no: it needs ")
    options = found.split("it would with ")[1].split()
    assert options == ["learner.zero_stage=3"]
    assert main([*line, *options]) == 0


def test_plan_refuses_what_cannot_be_placed(tmp_path, capsys):
    file = written(tmp_path, GIANTS["qwen2-7b"])
    assert main(["plan", file, "--gpus", "2xH100", "learner.num_workers=4"]) == 1
    assert "no: the job needs 4 GPUs" in capsys.readouterr().out


def test_plan_without_a_formula_says_so_and_is_no_refusal(tmp_path, capsys):
    file = written(tmp_path, {"model_type": "mamba"})
    assert main(["plan", file]) == 0
    assert "no estimate: no formula for model_type mamba" in capsys.readouterr().out


def test_plan_names_a_run_that_does_not_fit(tmp_path, capsys):
    file = written(tmp_path, GIANTS["qwen2-7b"])
    assert main(["plan", file, "--from", str(tmp_path)]) == 2
    assert "give the run directory of a ppo job" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["plan", file, "--gpu"])


def test_larger_clusters_are_simulated(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan, "SCALES", (1, 4))
    file = written(tmp_path, GIANTS["qwen2-7b"])
    assert main(["plan", file, "--gpus", "8xH200", "learner.num_workers=8", "rollout.num_workers=8", "--scale"]) == 0
    assert "  32 GPUs: ahead 0: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reward-seconds=-1"], "--reward-seconds -1: give a finite number of seconds, 0 or more"),
        (["--reward-seconds", "nan"], "--reward-seconds nan: give a finite number"),
        (["--reward-seconds", "inf"], "--reward-seconds inf: give a finite number"),
        (["--gpus", "8xH100", "--nodes", "0"], "--nodes 0: give a whole number of at least 1"),
        (["--nodes", "-2"], "--nodes -2: give a whole number of at least 1"),
        (["model.init.num_attention_heads=0"], "model.init: num_attention_heads is 0; give a whole number"),
        (["model.init.hidden_size=abc"], "model.init: hidden_size is 'abc'; give a whole number"),
        (["model.init.hidden_size=null"], "model.init: hidden_size is None; give a whole number"),
        (["model.init.num_hidden_layers=-1"], "model.init: num_hidden_layers is -1; give a whole number"),
    ],
)
def test_numbers_that_mean_nothing_end_with_exit_code_2_and_a_sentence(tmp_path, capsys, options, message):
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(rl_job(cluster={"device": "auto"})))
    assert main(["plan", str(file), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_run_cannot_calibrate_a_job_that_is_not_ppo(tmp_path, capsys):
    file = tmp_path / "job.yaml"
    job = {"job": "pretrain", "model": rl_job()["model"], "data": {"path": "toy:reviews/text"}, "num_steps": 1}
    file.write_text(json.dumps(job))
    assert main(["plan", str(file), "--from", "nonexistent"]) == 2
    assert "--from nonexistent: a run calibrates the estimate of a ppo job only" in capsys.readouterr().err


def test_vllm_on_a_cpu_is_planned(tmp_path, capsys):
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(rl_job(rollout={"engine": {"type": "vllm"}}, cluster={"device": "cpu"})))
    assert main(["plan", str(file)]) == 0
    assert "a rollout worker's KV cache holds " in capsys.readouterr().out
