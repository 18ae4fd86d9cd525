"""Real searches: who is stopped, who is cloned, who is chosen, and a trial whose process is killed. About 8 minutes."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from rlhf_ray.run.checkpoint import file_digest
from tests.helpers import ROOT, TINY, metrics_of, rl_job

pytestmark = [pytest.mark.learning, pytest.mark.timeout(1200)]

LR = {"type": "loguniform", "low": 1e-5, "high": 1e-2}
PRETRAIN = {
    "job": "pretrain",
    "run": {"seed": 0},
    "model": {"init": TINY, "tokenizer": "toy"},
    "data": {"path": "toy:reviews/text", "size": 128},
    "evaluate": {"every": 4, "data": {"path": "toy:reviews/text", "split": "heldout", "size": 16}},
    "num_steps": 16,
    "batch_size": 8,
    "max_length": 64,
}
HELDOUT = {"path": "toy:reviews/prompts", "split": "heldout", "size": 16, "max_prompt_tokens": 32}


def command(tmp_path, job, **tune):
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump({**job, "tune": {"max_concurrent": 2, **tune}}, sort_keys=False))
    return [sys.executable, "-m", "rlhf_ray", "tune", str(file), f"run.dir={tmp_path / 'run'}"]


def search(tmp_path, job, expect=0, **tune):
    """What tune.json says of a finished search."""
    line = command(tmp_path, job, **tune)
    done = subprocess.run(line, capture_output=True, text=True, timeout=900, cwd=ROOT, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return json.loads((tmp_path / "run" / "tune.json").read_text())


def test_successive_halving_stops_the_worse_half(tmp_path):
    rates = {"type": "grid", "values": [5e-3, 1e-6, 2e-6, 3e-6]}
    results = search(
        tmp_path, PRETRAIN, space={"learner.lr": rates}, num_samples=1, scheduler={"type": "asha", "reduction_factor": 2},
        objective={"metric": "-loss/cross_entropy"},
    )  # fmt: skip
    states = {t["values"]["learner.lr"]: (t["state"], t["history"][-1]["step"]) for t in results["trials"]}
    assert states[5e-3] == ("finished", 16)
    assert sum(state == "stopped" and step < 16 for state, step in states.values()) >= 2
    best = next(t for t in results["trials"] if t["name"] == results["best"])
    assert best["values"] == {"learner.lr": 5e-3}


@pytest.mark.parametrize("scheduler", ["hyperband", "median"])
def test_other_schedulers_end_with_the_best_rate(tmp_path, scheduler):
    rates = {"type": "grid", "values": [1e-6, 2e-6, 5e-3, 3e-6, 4e-6]}
    results = search(
        tmp_path, PRETRAIN, space={"learner.lr": rates}, num_samples=1, scheduler={"type": scheduler}, max_concurrent=3,
        objective={"metric": "-loss/cross_entropy"},
    )  # fmt: skip
    best = next(t for t in results["trials"] if t["name"] == results["best"])
    assert best["values"] == {"learner.lr": 5e-3}
    if (
        scheduler == "hyperband"
    ):  # Ray Tune's first bracket, of two, stops nobody; one of the three in the second continues
        assert sorted(t["history"][-1]["step"] for t in results["trials"]) == [4, 4, 16, 16, 16]


@pytest.mark.parametrize("searcher", [{"type": "optuna"}, {"type": "optuna", "pareto": True}, {"type": "hyperopt"}])
def test_other_searchers(tmp_path, searcher):
    if importlib.util.find_spec(searcher["type"]) is None:
        pytest.skip(f"pip install 'rlhf-ray[{searcher['type']}]'")
    space = {"learner.lr": LR, "batch_size": {"type": "randint", "low": 4, "high": 9}, "learner.weight_decay":
             {"type": "quniform", "low": 0, "high": 0.1, "q": 0.05}}  # fmt: skip
    results = search(
        tmp_path, PRETRAIN, space=space, num_samples=4, searcher=searcher, objective={"metric": "-loss/cross_entropy"}
    )
    assert [t["state"] for t in results["trials"]] == ["finished"] * 4
    assert len({t["values"]["learner.lr"] for t in results["trials"]}) == 4
    finished = sorted(results["trials"], key=lambda t: t["history"][-1]["quality"])
    assert finished[-1]["name"] == results["best"]
    if searcher["type"] == "optuna":
        assert set(results["importance"]) == set(space)


def test_population_based_training_clones_a_real_checkpoint(tmp_path):
    job = rl_job(
        algorithm={"type": "grpo", "group_size": 4, "kl": {"coef": 0.02}}, num_steps=6, evaluate={"every": 2, "data": HELDOUT},
        checkpoint={"keep": 5},
    )  # fmt: skip
    space = {"learner.lr": LR, "algorithm.kl.coef": {"type": "uniform", "low": 0.0, "high": 0.1}}
    results = search(
        tmp_path, job, space=space, num_samples=2, objective={"max_kl": 5.0},
        scheduler={"type": "pbt", "quantile": 0.5, "synchronous": True},
    )  # fmt: skip
    trials = tmp_path / "run" / "trials"
    clones = sorted(trials.glob("*/clone.json"))
    assert clones
    assert {t["state"] for t in results["trials"]} == {"finished"}
    for note in clones:
        origin, run_dir = json.loads(note.read_text()), note.parent
        step, donor = origin["donor"]["step"], trials / origin["donor"]["run"]
        shards = [f"checkpoints/step-{step:06d}/learner/actor/{name}" for name in
                  ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt")]  # fmt: skip
        assert [file_digest(run_dir / s) for s in shards] == [file_digest(donor / s) for s in shards]
        lines = metrics_of(run_dir)
        assert lines[:step] == metrics_of(donor)[:step]
        assert [m["step"] for m in lines] == list(range(len(lines)))
        after = [m for m in lines if m["step"] >= step]
        assert after
        for m in after:  # its own rate and coefficient, not those that were saved
            assert m["actor/lr"] == pytest.approx(origin["values"]["learner.lr"])
            assert m["kl/coef"] == pytest.approx(origin["values"]["algorithm.kl.coef"])


def test_the_highest_reward_does_not_win_if_it_exceeds_the_budget(tmp_path):
    job = rl_job(
        algorithm={"type": "grpo", "group_size": 8, "kl": {"coef": 0.0}}, num_steps=30, evaluate={"every": 10, "data": HELDOUT},
        learner={"lr": 5e-3, "micro_batch_tokens": 512},
    )  # fmt: skip
    space = {"algorithm.kl.coef": {"type": "grid", "values": [0.0, 0.3]}}
    results = search(tmp_path, job, space=space, num_samples=1, objective={"max_kl": 2.0})
    by_coef = {t["values"]["algorithm.kl.coef"]: t for t in results["trials"]}
    hacker, careful = by_coef[0.0]["history"][-1], by_coef[0.3]["history"][-1]
    assert hacker["quality"] > careful["quality"]
    assert hacker["kl"] > 2.0 >= careful["kl"]
    assert results["best"] == by_coef[0.3]["name"]
    assert set(results["front"]) == {t["name"] for t in results["trials"]}
    assert "coef: 0.3" in (tmp_path / "run" / "best.yaml").read_text()


def test_a_trial_whose_process_is_killed_continues(tmp_path):
    line = command(
        tmp_path,
        {**PRETRAIN, "num_steps": 64},
        space={"learner.lr": LR},
        num_samples=1,
        objective={"metric": "-loss/cross_entropy"},
    )
    running = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    next(out for out in running.stdout if " step " in out)
    os.kill(trial_process(running.pid), signal.SIGKILL)
    out, error = running.communicate(timeout=300)
    assert running.returncode == 0, out + error
    (run_dir,) = (tmp_path / "run" / "trials").iterdir()
    assert "going on from step-" in (run_dir / "output.txt").read_text()
    assert [m["step"] for m in metrics_of(run_dir)] == list(range(64))


def trial_process(driver):
    """The process that trains the trial of this search: Ray names it after Tune's class."""
    for _ in range(100):
        for process in psutil.Process(driver).children(recursive=True):
            if "ray::ImplicitFunc" in " ".join(process.cmdline()):
                return process.pid
        time.sleep(0.1)
    raise AssertionError("no process of a trial found")
