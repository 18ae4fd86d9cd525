"""What is decided before a run's first step."""

import json
from pathlib import Path

import pytest
import yaml

from rlhf_ray.cli import main
from rlhf_ray.config import BadInput, PromptConfig
from rlhf_ray.config.rewards import FunctionReward
from rlhf_ray.data.prompts import load_prompts
from rlhf_ray.jobs.preflight import find_function
from rlhf_ray.run.outcome import Failed, failing
from rlhf_ray.toy import world as toy
from rlhf_ray.train.workers import with_absolute_path
from tests.helpers import ROOT


def test_dropped_prompts_are_reported_and_rows_keep_their_columns(tmp_path, notices):
    rows = [{"prompt": "the view was great"}, {"prompt": "the view", "answer": "7"}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = PromptConfig(path=str(tmp_path / "x.jsonl"), max_prompt_tokens=2, too_long="drop")
    prompts = load_prompts(config, toy.tokenizer(), 128, 8, "evaluate.data")
    assert notices == ["evaluate.data: 1 of 2 prompts are longer than evaluate.data.max_prompt_tokens 2, left out"]
    assert prompts.rows.to_pylist() == [{"prompt": "the view", "answer": "7", "example_id": 1}]


def test_a_reward_file_is_that_of_the_users_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    term = FunctionReward(name="own", path="rewards/f.py:f")
    assert with_absolute_path(term).path == f"{Path.cwd()}/rewards/f.py:f"


def term_of(tmp_path, name):
    (tmp_path / "f.py").write_text("""if True:
        import missing_module
        from elsewhere import taken as own
        def direct(prompts, completions, **columns): ...
        async def later(prompts, completions, **columns): ...
        made = make()
    """)
    return FunctionReward(name="mine", path=f"{tmp_path}/f.py:{name}")


@pytest.mark.parametrize("name", ["direct", "later", "own", "made"])
def test_a_function_is_found_without_importing_its_file(tmp_path, name):
    find_function(term_of(tmp_path, name))


def test_a_function_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"reward 'mine': no function 'taken' in .*f\.py; it has "):
        find_function(term_of(tmp_path, "taken"))
    (tmp_path / "g.py").write_text("\ndef f(:\n")
    with pytest.raises(BadInput, match=r"g\.py:2: invalid syntax"):
        find_function(FunctionReward(name="mine", path=f"{tmp_path}/g.py:f"))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("data.path", "gone.jsonl", "stages.ppo: gone.jsonl: no such file; data.path is"),
        ("data.path", "toy:nonsense", "stages.ppo: data.path: unknown task 'nonsense'"),
        ("evaluate.data.path", "toy:nonsense", "stages.ppo: evaluate.data.path: unknown task"),
        ("ptx_data", "{path: gone.jsonl}", "stages.ppo: gone.jsonl: no such file; ptx_data.path is"),
        ("critic.path", "./gone", "stages.ppo: ./gone: no such model directory"),
        ("rewards.terms.0", "{name: own, type: function, path: 'gone.py:f'}", "stages.ppo: reward 'own': no such file gone.py"),
        ("evaluate.terms.0", "{name: judge, type: model, path: ./gone}", "stages.ppo: ./gone: no such model directory"),
    ],
)  # fmt: skip
def test_a_pipeline_looks_at_its_last_stage_before_its_first(tmp_path, capsys, key, value, says):
    overrides = [f"stages.ppo.{key}={value}"] + ["stages.ppo.algorithm.ptx_coef=0.5"] * (key == "ptx_data")
    assert main(["train", str(ROOT / "jobs" / "quickstart.yaml"), f"run.dir={tmp_path}/run", *overrides]) == 2
    assert capsys.readouterr().err.startswith(f"rlhf-ray: {says}")
    assert not (tmp_path / "run" / "pretrain").exists()


def test_a_finished_stage_needs_its_files_no_more(tmp_path, capsys):
    job = yaml.safe_load((ROOT / "jobs" / "quickstart.yaml").read_text())
    job["stages"]["pretrain"]["data"] = {"path": "used.jsonl"}
    job["stages"]["sft"]["data"] = {"path": "gone.jsonl"}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job, sort_keys=False))
    (tmp_path / "run" / "pretrain").mkdir(parents=True)
    (tmp_path / "run" / "pretrain" / "manifest.json").write_text('{"state": "finished"}')
    assert main(["train", str(tmp_path / "job.yaml"), f"run.dir={tmp_path}/run"]) == 2
    assert "rlhf-ray: stages.sft: gone.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(("trained", "kind"), [(False, BadInput), (True, Failed)])
def test_bad_input_after_training_has_begun_is_a_failure(trained, kind):
    with pytest.raises(kind, match="no number"), failing(lambda: trained):
        raise BadInput("no number")
