"""`rlhf-ray plan` as a user runs it: the verdict, what would help, and what is refused."""

import json
import subprocess
import sys

import pytest

from rlhf_ray.cli import main
from rlhf_ray.config import parse
from rlhf_ray.plan import text as plan
from rlhf_ray.plan.hardware import this_machine
from tests.helpers import ROOT, rl_job
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


@pytest.mark.parametrize(
    "options",
    [
        ["learner.num_workers=8", "rollout.num_workers=8"],  # on shared GPUs nothing is generated ahead
        ["learner.num_workers=4", "rollout.num_workers=4", "cluster.colocate=false"],
    ],
)
def test_larger_clusters_are_simulated(tmp_path, capsys, monkeypatch, options):
    monkeypatch.setattr(plan, "SCALES", (1, 4))
    file = written(tmp_path, GIANTS["qwen2-7b"])
    assert main(["plan", file, "--gpus", "8xH200", *options, "--scale"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  32 GPUs: ahead 0: "))
    assert ("ahead 1: " in line) == ("cluster.colocate=false" in options)


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
    job["max_length"] = 64
    file.write_text(json.dumps(job))
    assert main(["plan", str(file), "--from", "nonexistent"]) == 2
    assert "--from nonexistent: a run calibrates the estimate of a ppo job only" in capsys.readouterr().err


def test_vllm_on_a_cpu_is_planned():
    job = parse(rl_job(rollout={"engine": {"type": "vllm"}}, cluster={"device": "cpu"}), "job")
    answer = plan.answer(job, this_machine())
    assert answer.yes
    assert any("a rollout worker's KV cache holds " in line for line in answer.lines)


FUNCTION = "{name: own, type: function, path: 'gone.py:f'}"
MISSING = [
    ("data.path=gone.jsonl", "gone.jsonl: no such file; data.path"),
    ("model={path: ./gone}", "./gone: no such model directory"),
    ("rewards.terms.0={name: words, type: rule, rule: nonsense}", "no rule 'nonsense'"),
    (f"rewards.terms.0={FUNCTION}", "reward 'own': no such file gone.py"),
    (
        "rollout.max_new_tokens=97",
        "data.max_prompt_tokens 32 + rollout.max_new_tokens 97 exceed the model's context of 128",
    ),
    ("log.wandb=project", "log.wandb needs the package wandb: pip install 'rlhf-ray[wandb]'"),
]


@pytest.mark.parametrize(("override", "message"), MISSING)
def test_plan_and_data_refuse_what_train_refuses_with_the_same_message(
    tmp_path, capsys, monkeypatch, override, message
):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(rl_job(run={"dir": str(tmp_path / "run")})))
    errors = []
    for command in ("train", "plan", "data"):
        assert main([command, str(file), override]) == 2
        errors.append(capsys.readouterr().err)
    assert message in errors[0]
    assert errors[1:] == [errors[0]] * 2


def test_the_context_is_that_of_an_earlier_stage_or_of_config_json(tmp_path, capsys):
    quickstart = str(ROOT / "jobs" / "quickstart.yaml")
    overrides = [f"run.dir={tmp_path}", "stages.ppo.rollout.max_new_tokens=4000"]  # a finished stage is not checked
    assert main(["plan", quickstart, *overrides]) == 2
    assert "rlhf-ray: stages.ppo: data.max_prompt_tokens " in capsys.readouterr().err
    file = written(tmp_path, {**GIANTS["qwen2-7b"], "max_position_embeddings": 39})
    assert main(["plan", file, "--gpus", "8xH100-80GB"]) == 2
    assert "exceed the model's context of 39 tokens" in capsys.readouterr().err


def test_packages_of_other_machines_are_not_looked_for_here(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    file = written(tmp_path, GIANTS["qwen2-7b"], log={"wandb": "project"})
    assert main(["plan", file]) == 2
    assert main(["plan", file, "--gpus", "8xH100-80GB", "learner.num_workers=8", "rollout.num_workers=8"]) == 0


def test_a_plan_with_its_checks_imports_neither_torch_nor_ray(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(rl_job()))
    code = (
        f"import sys; from rlhf_ray.cli import main; assert main(['plan', {str(file)!r}]) == 0; "
        "assert not {'torch', 'ray', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
