"""Bad input that only a started job can see: one clear sentence, exit code 2, and no actor left. The job joins a running Ray."""

import json

import pytest
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from rlhf_ray.cli import main
from rlhf_ray.toy import world as toy
from tests.helpers import ROOT, TINY, rl_job

pytestmark = pytest.mark.integration
LATER = (
    pytest.mark.learning
)  # unit tests have the same words (test_bad_rows, rewards/test_function): not in CI, so that it stays short

FUNCTIONS = """
def raises(prompts, completions, **columns):
    return [1 / 0 for _ in completions]

def short(prompts, completions, **columns):
    return [0.0]

def none(prompts, completions, **columns):
    return [None for _ in completions]

def nan(prompts, completions, **columns):
    return [float("nan") for _ in completions]

def text(prompts, completions, **columns):
    return "good"
"""


@pytest.fixture
def refused(address, tmp_path, capsys):
    """refused(job) -> the one line on stderr of a `train` that ends with exit code 2."""

    def run(job, *overrides):
        file = tmp_path / "job.yaml"
        file.write_text(yaml.safe_dump(job, sort_keys=False))
        code = main(["train", str(file), f"run.dir={tmp_path}/run", f"cluster.address={address}", *overrides])
        err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rlhf-ray: ")]
        assert code == 2, err
        assert len(err) == 1, err
        assert json.loads((tmp_path / "run" / "manifest.json").read_text())["state"] == "failed"
        assert not (tmp_path / "run" / "model").exists()
        return err[0]

    return run


def prompts(path, size=None, max_prompt_tokens=32):
    return {"path": str(path), "size": size, "max_prompt_tokens": max_prompt_tokens}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(None, "no such file", marks=LATER),
        pytest.param("", "no rows", marks=LATER),
        ('{"prompt": "the staff"}\n{"prompt": \n', "prompts.jsonl:2: not JSON"),
        ('{"question": "the staff"}\n', "no column 'prompt'"),
        pytest.param('{"prompt": ""}\n', "empty", marks=LATER),
        (json.dumps({"prompt": "the staff was great . " * 20}) + "\n", "max_prompt_tokens"),
        (json.dumps({"prompt": [{"role": "user", "content": "hello"}]}) + "\n", "no chat template"),
    ],
)
def test_prompts_that_cannot_be_used(refused, tmp_path, content, says):
    file = tmp_path / "prompts.jsonl"
    if content is not None:
        file.write_text(content)
    assert says in refused(rl_job(data=prompts(file)))


def test_prompts_longer_than_the_models_context(refused):
    assert "context of 128 tokens" in refused(rl_job(data=prompts("toy:reviews/prompts", 8, 124)))


def test_a_model_that_is_not_there(refused, tmp_path):
    message = refused(rl_job(model={"path": str(tmp_path / "none")}))
    assert "no such model directory" in message


def test_a_tokenizer_without_an_end_token(refused, tmp_path):
    tokenizer = toy.tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert "eos" in refused(rl_job(model={"init": TINY, "tokenizer": str(tmp_path / "tokenizer")}))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing", "missing"),
        ("raises", "ZeroDivisionError"),
        ("short", "returned 1 values for"),
        pytest.param("none", "no sample got a reward", marks=LATER),
        pytest.param("nan", "returned 'nan' for example", marks=LATER),
        pytest.param("text", "return a list of floats", marks=LATER),
    ],
)
def test_a_reward_function_that_fails(refused, tmp_path, name, says):
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    term = {"name": "own", "type": "function", "path": f"{tmp_path}/functions.py:{name}", "retries": 0}
    message = refused(rl_job(rewards={"terms": [term]}))
    assert says in message
    assert "own" in message


def test_a_reward_that_fails_after_a_step_is_a_failure_and_the_checkpoint_stands(address, tmp_path, capsys):
    first = tmp_path / "run" / "checkpoints" / "step-000001"
    (tmp_path / "f.py").write_text(f"""if True:
        import os
        def reward(prompts, completions, **columns):
            assert not os.path.exists({str(first / "manifest.json")!r}), "not again"
            return [float(len(c)) for c in completions]
    """)
    term = {"name": "own", "type": "function", "path": f"{tmp_path}/f.py:reward", "retries": 0}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(rl_job(rewards={"terms": [term]}, checkpoint={"every": 1})))
    line = ["train", str(tmp_path / "job.yaml"), f"run.dir={tmp_path}/run", f"cluster.address={address}"]
    assert main(line) == 1
    err = capsys.readouterr().err
    assert "rlhf-ray: reward 'own'" in err
    assert "not again" in err
    assert "Traceback" not in err
    assert first.is_dir()


def test_a_reward_file_that_is_not_there(refused, tmp_path):
    term = {"name": "own", "type": "function", "path": f"{tmp_path}/none.py:reward"}
    assert "none.py" in refused(rl_job(rewards={"terms": [term]}))


@LATER
def test_a_reward_model_without_a_trained_head(refused, tmp_path):
    settings = {k: v for k, v in TINY.items() if k != "model_type"}
    LlamaForCausalLM(LlamaConfig(vocab_size=80, **settings)).save_pretrained(tmp_path / "base")
    toy.tokenizer().save_pretrained(tmp_path / "base")
    term = {"name": "model", "type": "model", "path": str(tmp_path / "base")}
    assert "without a trained reward head" in refused(rl_job(rewards={"terms": [term]}))


def test_a_reward_model_with_another_tokenizer_reads_text(address, tmp_path):
    tokenizer = toy.tokenizer()
    tokenizer.add_tokens(["[another]"])
    settings = {k: v for k, v in TINY.items() if k != "model_type"}
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=0, **settings)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    job = rl_job(rewards={"terms": [{"name": "model", "type": "model", "path": str(tmp_path / "judge")}]}, num_steps=1)
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job))
    assert main(["train", str(file), f"run.dir={tmp_path}/run", f"cluster.address={address}"]) == 0


def test_a_file_in_the_way_of_the_run_directory(tmp_path, capsys):
    (tmp_path / "run").write_text("")
    assert main(["train", str(ROOT / "jobs" / "quickstart.yaml"), f"run.dir={tmp_path}/run"]) == 2
    assert "run.dir" in capsys.readouterr().err
