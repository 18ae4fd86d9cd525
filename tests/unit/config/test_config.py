"""Job files, overrides and what is refused: one line that says what, where and how to fix it."""

import copy

import pytest
import yaml
from pydantic import ValidationError

from rlhf_ray.cli import main
from rlhf_ray.config import BadInput, ConfigError, load_job
from rlhf_ray.config.load import parse
from rlhf_ray.plan.hardware import this_machine
from rlhf_ray.plan.text import answer
from tests.helpers import ROOT, TINY, rl_job

JOBS = sorted((ROOT / "jobs").rglob("*.yaml"))


def changed(path, value):
    """rl_job() with the key at a dotted path set."""
    job = copy.deepcopy(rl_job())
    *way, last = path.split(".")
    node = job
    for key in way:
        node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
    node[int(last) if isinstance(node, list) else last] = value
    return job


@pytest.mark.parametrize("file", JOBS, ids=lambda f: f.stem)
def test_every_job_file_loads_and_is_the_same_after_a_round_trip(file):
    job = load_job(file)
    assert parse(job.model_dump(mode="json"), "again") == job


@pytest.mark.parametrize("file", [f for f in JOBS if f.parent.name != "presets"], ids=lambda f: f.stem)
def test_plan_prints_the_arithmetic(file):
    assert answer(load_job(file), this_machine()).lines


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("learner.optimiser", "sgd", "did you mean 'optimizer'"),
        ("algoritm", {}, "did you mean 'algorithm'"),
        ("learner.lr", "fast", "learner.lr"),
        ("learner.lr", -1.0, "greater than"),
        ("rollout.temperature", 0, "rollout.temperature"),
        ("rollout.engine", {"max_row": 4}, "rollout.engine: unknown key 'max_row'; did you mean 'max_rows'"),
        ("rollout.engine", {"dtype": "int8"}, "rollout.engine.dtype: "),
        ("rollout.engine.type", "vlm", "rollout.engine: unknown 'type' 'vlm'; did you mean 'vllm'"),
        ("rollout.engine", {"type": "vllm", "memory_fraction": 2}, "rollout.engine.memory_fraction: "),
        ("algorithm.type", "ppoo", "algorithm"),
        ("algorithm.gamma", 1.5, "algorithm.gamma"),
        ("algorithm.num_mini_batches", 3, "do not divide"),
        ("learner.num_workers", 8, "without one"),
        ("learner.micro_batch_tokens", 32, "longest sequence"),
        ("algorithm.ptx_coef", 0.5, "ptx_data"),
        (
            "data",
            {"path": "rows.jsonl", "split": "heldout"},
            "data: split and seed belong to 'toy:' data; give held-out",
        ),
        ("evaluate.data", {"path": "rows.jsonl", "seed": 1}, "evaluate.data: split and seed belong to 'toy:' data"),
        ("rewards.terms.0.retries", 1, "unknown key 'retries'"),
        (
            "algorithm.kl",
            {"coef": 0.1, "controller": {"type": "adaptive", "horizon": 1.6}},
            "horizon = 1.6 must exceed",
        ),
        ("algorithm.kl", {"controller": {"type": "adaptive"}}, "0 stays 0"),
        ("rewards.terms", [], "rewards.terms"),
        ("rewards.terms.0.type", "oracle", "rewards.terms.0"),
        ("evaluate.terms", rl_job()["rewards"]["terms"], "share a name"),
        ("model", {}, "model"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place(tmp_path, capsys, path, value, says):
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(changed(path, value)))
    assert main(["train", str(file), f"run.dir={tmp_path}/run"]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert str(file) in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [("job: ppo\n  bad: [", "job.yaml:2: not YAML"), ("- a list", "a mapping of keys"), ("job: sing\n", "job")],
)
def test_a_file_that_is_no_job(tmp_path, capsys, text, says):
    (tmp_path / "job.yaml").write_text(text)
    assert main(["plan", str(tmp_path / "job.yaml")]) == 2
    assert says in capsys.readouterr().err


def test_a_file_that_is_not_there(capsys):
    assert main(["train", "jobs/none.yaml"]) == 2
    assert "no such job file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("num_steps", "is not key.path=value"),
        ("rewards.terms.5.weight=1", "not an index of the list of 1"),
        ("num_steps.more=1", "holds a value, not keys"),
        ("run.dir={a", "quote it"),
    ],
)
def test_an_override_that_cannot_be_applied(tmp_path, override, says):
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(rl_job()))
    with pytest.raises(BadInput, match=says):
        load_job(tmp_path / "job.yaml", [override])


def test_overrides_reach_into_lists_and_read_numbers(tmp_path):
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(rl_job()))
    job = load_job(tmp_path / "job.yaml", ["learner.lr=1e-4", "rewards.terms.0.weight=0.5", "log={tensorboard: true}"])
    assert (job.learner.lr, job.rewards.terms[0].weight, job.log.tensorboard) == (1e-4, 0.5, True)


def test_a_stage_may_only_name_an_earlier_one(tmp_path, capsys):
    job = yaml.safe_load((ROOT / "jobs" / "quickstart.yaml").read_text())
    job["stages"] = {"ppo": job["stages"]["ppo"]}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    assert main(["train", str(tmp_path / "job.yaml"), f"run.dir={tmp_path}/run"]) == 2
    assert "names no earlier stage" in capsys.readouterr().err


def test_a_job_does_not_change():
    with pytest.raises(ValidationError):
        parse(rl_job(), "job").num_steps = 3


def test_ppo_is_the_algorithm_unless_another_is_named():
    assert parse(rl_job(algorithm={"kl": {"coef": 0.2}}), "job").algorithm.type == "ppo"


def test_options_are_listed_by_what_they_contain(capsys):
    assert main(["options", "ppo.learner."]) == 0
    assert all(line.startswith("ppo.learner.") for line in capsys.readouterr().out.splitlines())


def test_an_option_is_found_by_the_name_that_other_systems_give_it(capsys):
    assert main(["options", "learning_rate"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == {"learner.lr", "ppo.critic.lr"}
    assert main(["options", "learning_rat"]) == 2
    assert "similar: learning_rate" in capsys.readouterr().err


def test_options_that_algorithms_share_are_one_line(capsys):
    assert main(["options", "ppo.algorithm"]) == 0
    lines = capsys.readouterr().out.splitlines()
    clip = [line for line in lines if line.startswith("ppo.algorithm.clip_high ")]
    assert len(clip) == 2
    assert "0.2; dapo 0.28" in clip[0]
    assert clip[1].endswith("(gspo)")
    assert len(lines) < 60


def test_a_key_of_another_system_is_told_where_it_is():
    with pytest.raises(ConfigError, match=r"learner.*'learning_rate'; did you mean 'lr'"):
        parse(rl_job(learner={"learning_rate": 1e-4}), "job")
    with pytest.raises(ConfigError, match=r"unknown key 'num_generations'; did you mean 'algorithm.group_size'"):
        parse(rl_job(num_generations=8), "job")


@pytest.mark.parametrize("command", ["--help", "train --help", "report --help", "--version"])
def test_help_ends_well(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main(command.split())
    assert ended.value.code == 0
    assert "rlhf-ray" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("stages.ppo.run.seed=3", "stages share the pipeline's"),
        ("stages.ppo.cluster.num_threads=3", "stages share the pipeline's"),
        ("stages.ppo.model.path=stage:later", "names no earlier stage"),
        ("stages={../a: {}}", "stages"),
    ],
)
def test_stages_that_do_not_fit(override, says):
    with pytest.raises(BadInput, match=says):
        load_job(ROOT / "jobs" / "quickstart.yaml", [override])


def test_a_key_that_comes_twice_is_refused(tmp_path):
    (tmp_path / "job.yaml").write_text("job: ppo\nnum_steps: 1\nnum_steps: 2\n")
    with pytest.raises(BadInput, match=r"job\.yaml:3: .*'num_steps' comes twice"):
        load_job(tmp_path / "job.yaml")


def test_an_engine_without_a_type_is_the_embedded_one():
    job = parse(changed("rollout.engine", {"dtype": "bfloat16"}), "here")
    assert (job.rollout.engine.type, job.rollout.engine.dtype) == ("transformers", "bfloat16")


def test_stages_share_a_file_of_the_pipeline():
    sft = {
        "job": "sft",
        "model": {"init": TINY, "tokenizer": "toy"},
        "num_steps": 1,
        "data": {"path": "file:train", "size": 3},
    }
    tree = {
        "job": "pipeline",
        "files": {"train": {"path": "a.tsv", "columns": {"s": "text"}, "size": 9}},
        "stages": {"sft": sft},
    }
    data = parse(tree, "x").stages["sft"].data
    assert (data.path, data.columns, data.size) == ("a.tsv", {"s": "text"}, 3)
    tree["files"] = {"train": "b.tsv"}
    assert parse(tree, "x").stages["sft"].data.path == "b.tsv"
    again = parse(parse(tree, "x").model_dump(mode="json"), "x")
    assert again == parse(tree, "x")
    tree["files"] = {"dev": "b.tsv"}
    with pytest.raises(ConfigError, match="'file:train' is not one of files"):
        parse(tree, "x")


def test_a_process_reward_needs_an_algorithm_with_token_rewards():
    term = {"name": "steps", "type": "model", "path": "x", "steps": "."}
    assert parse(rl_job(rewards={"terms": [term]}), "x").rewards.terms[0].steps == "."
    grpo = rl_job(rewards={"terms": [term]}, algorithm={"type": "grpo"})
    with pytest.raises(ConfigError, match="take ppo, reinforce or reinforce_plus_plus"):
        parse(grpo, "x")
