"""A search without Ray: the space and what it refuses, fronts and budgets, clones, and what is written at the end."""

import itertools
import json
import math
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from pydantic import ValidationError
from rich.console import Console

from rlhf_ray.actors.placement import Demand, plan_placement
from rlhf_ray.config import BadInput, ObjectiveConfig, Search, TuneConfig, load, load_search
from rlhf_ray.config.tune import samples
from rlhf_ray.quality import pareto
from rlhf_ray.run.checkpoint import Checkpoints
from rlhf_ray.search import clone
from rlhf_ray.search import results as findings
from rlhf_ray.search import search as tune
from rlhf_ray.search.objective import aim, base_job
from rlhf_ray.search.results import Row
from rlhf_ray.search.trial import Trials, last_evaluation, plain
from tests.helpers import JOBS, rl_job

LR = {"type": "loguniform", "low": 1e-4, "high": 1e-2}
HELDOUT = {"every": 2, "data": {"path": "toy:reviews/prompts", "split": "heldout", "size": 16, "max_prompt_tokens": 32}}


def search_of(tmp_path, job=None, overrides=(), **tune) -> Search:
    job = job or rl_job(evaluate=HELDOUT, num_steps=4)
    file = tmp_path / "job.yaml"
    section = {"space": {"learner.lr": LR}, "objective": {"max_kl": 5.0}, **tune}
    file.write_text(yaml.safe_dump({**job, "tune": section}, sort_keys=False))
    return load_search(file, [f"run.dir={tmp_path / 'run'}", *overrides])


# the space -----------------------------------------------------------------------------------------------------------


def test_every_distribution_draws_inside_its_bounds():
    space = TuneConfig(
        space={
            "a": {"type": "choice", "values": [1, 2]}, "b": {"type": "uniform", "low": -1, "high": 2}, "c": LR,
            "d": {"type": "quniform", "low": 0, "high": 1, "q": 0.25}, "e": {"type": "randint", "low": 3, "high": 5},
            "f": {"type": "grid", "values": ["x", "y"]},
        }
    ).space  # fmt: skip
    drawn = samples(space, 400, 0)[-400:]
    assert {v["a"] for v in drawn} == {1, 2}
    assert {v["d"] for v in drawn} == {0, 0.25, 0.5, 0.75, 1}
    assert {v["e"] for v in drawn} == {3, 4}
    assert {v["f"] for v in drawn} == {"x", "y"}
    assert -1 <= min(v["b"] for v in drawn) < -0.5
    assert 1.5 < max(v["b"] for v in drawn) <= 2
    logs = sorted(math.log10(v["c"]) for v in drawn)
    assert -4 <= logs[0] < logs[-1] <= -2
    assert logs[200] == pytest.approx(-3, abs=0.15)  # the median of a log-uniform is the geometric mean


def test_the_ends_are_all_tried_before_anything_starts():
    space = TuneConfig(space={"a": LR, "b": {"type": "randint", "low": 3, "high": 9}}).space
    tried = samples(space, 0, 0)
    assert {v["a"] for v in tried} == {1e-4, 1e-2}
    assert {v["b"] for v in tried} == {3, 8}


def test_a_space_may_be_nested_and_one_bound_changed_on_the_command_line(tmp_path):
    nested = search_of(
        tmp_path, space={"learner": {"lr": LR}, "algorithm": {"kl": {"coef": {"type": "choice", "values": [0.1]}}}}
    )
    assert [*nested.tune.space] == ["learner.lr", "algorithm.kl.coef"]
    changed = search_of(tmp_path, overrides=["tune.space.learner.lr.high=0.5", "tune.num_samples=3"])
    assert changed.tune.space["learner.lr"].high == 0.5
    assert changed.tune.space["learner.lr"].low == 1e-4
    assert changed.tune.num_samples == 3


def test_values_reach_the_job_of_a_trial(tmp_path):
    found = search_of(
        tmp_path, space={"learner.lr": LR, "rewards.terms.0.weight": {"type": "uniform", "low": 0, "high": 1}}
    )
    trials = Trials({**found.base, "run": {"seed": 3}, "cluster": {}}, tmp_path / "trials", None, 2)
    job = trials.job({"learner.lr": 0.003, "rewards.terms.0.weight": 0.25}, tmp_path / "trials" / "x")
    assert (job.learner.lr, job.rewards.terms[0].weight, job.run.seed) == (0.003, 0.25, 3)
    assert job.run.dir == str(tmp_path / "trials" / "x")
    assert job.checkpoint.every == job.evaluate.every == 2  # what is reported can be gone on from


def test_train_checks_the_section_and_leaves_it_out(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump({**rl_job(), "tune": {"space": {"learner.lr": LR}}}))
    assert not hasattr(load(file), "tune")
    file.write_text(yaml.safe_dump({**rl_job(), "tune": {"space": {"learner.lr": {**LR, "hihg": 1}}}}))
    with pytest.raises(BadInput, match=r"tune.space.learner.lr.*'hihg'.*did you mean 'high'"):
        load(file)


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"space": {"learner.lrr": LR}}, r"learner: unknown key 'lrr'; did you mean 'lr'"),
        ({"space": {"learner.lr": {"type": "loguniform", "low": -1, "high": 1}}}, r"low.*greater than 0"),
        ({"space": {"learner.lr": {"type": "uniform", "low": 1, "high": 0}}}, r"low = 1 is not below high = 0"),
        ({"space": {"learner.lr": {"type": "uniform", "low": -1, "high": 1}}}, r"learner.lr=-1.*learner.lr"),
        ({"space": {"learner.lr": {"type": "gauss", "low": 1}}}, r"gauss"),
        ({"space": {"rewards.terms.3.weight": LR}}, r"'3' is not an index of the list of 1"),
        ({"space": {"evaluate.greedy": {"type": "choice", "values": [True]}}}, r"what measures them must not change"),
        ({"space": {"cluster.colocate": {"type": "choice", "values": [True]}}}, r"cluster.colocate is the same in all trials"),
        ({"space": {"run.dir": {"type": "choice", "values": ["a"]}}}, r"run.dir is the same in all trials"),
        ({"space": {"num_steps": {"type": "choice", "values": [2]}}, "scheduler": {"type": "asha"}}, r"num_steps is fixed"),
        ({"space": {"run.seed": {"type": "choice", "values": [2]}}, "scheduler": {"type": "pbt"}}, r"search it without pbt"),
        ({"space": {"learner.lr": {"type": "grid", "values": [1]}}, "searcher": {"type": "optuna"}}, r"is a grid"),
        ({"searcher": {"type": "optuna"}, "scheduler": {"type": "pbt"}}, r"take random"),
        ({"space": {"learner.lr": {"type": "quniform", "low": 0, "high": 1, "q": 0.3}}}, r"multiples of q"),
        ({"space": {"rollout.prompts_per_step": {"type": "choice", "values": [8, 9]}, "algorithm.num_mini_batches":
            {"type": "choice", "values": [8]}}}, r"prompts_per_step=9.*do not divide"),
        ({"num_sample": 3}, r"unknown key 'num_sample'; did you mean 'num_samples'"),
    ],
)  # fmt: skip
def test_a_space_that_makes_no_job_is_refused_before_anything_starts(tmp_path, tune, message):
    with pytest.raises(BadInput, match=message):
        search_of(tmp_path, **tune)


def test_a_file_without_the_section_is_refused(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(rl_job()))
    with pytest.raises(BadInput, match="no section `tune:`"):
        load_search(file)


def test_bad_input_ends_with_exit_code_2_and_one_line(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump({**rl_job(evaluate=HELDOUT), "tune": {"space": {"learner.lr": LR}}}))
    line = [sys.executable, "-m", "rlhf_ray", "tune", str(file), f"run.dir={tmp_path / 'run'}"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("rlhf-ray: tune.objective.max_kl: the highest reward alone is a hacked one")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


# what is best --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "tune", "message"),
    [
        (rl_job(), {}, "give evaluate.data"),
        (rl_job(evaluate={**HELDOUT, "every": 0}), {"scheduler": {"type": "asha"}}, "set evaluate.every"),
        (rl_job(evaluate=HELDOUT), {"objective": {}}, "the highest reward alone is a hacked one"),
        (rl_job(evaluate=HELDOUT), {"objective": {"max_kl": 1, "metric": "part/truth"}}, "held-out answers have no 'part/truth'"),
        (rl_job(evaluate=HELDOUT), {"space": {"rewards.terms.0.weight": LR}}, "changes what the reward is"),
    ],
)  # fmt: skip
def test_an_objective_that_does_not_fit_is_refused(tmp_path, job, tune, message):
    with pytest.raises(BadInput, match=message):
        aim(search_of(tmp_path, job, **tune))


def test_supervised_jobs_say_what_is_best_and_have_no_budget(tmp_path):
    job = {
        "job": "classify", "model": rl_job()["model"], "data": {"path": "toy:reviews/labels"}, "num_steps": 4,
        "evaluate": {"every": 2, "data": {"path": "toy:reviews/labels", "split": "heldout"}},
    }  # fmt: skip
    with pytest.raises(BadInput, match="say which held-out metric of job: classify"):
        aim(search_of(tmp_path, job, objective={}))
    with pytest.raises(BadInput, match="budgets of ppo"):
        aim(search_of(tmp_path, job, objective={"metric": "accuracy", "max_kl": 3}))
    found = aim(search_of(tmp_path, job, objective={"metric": "-loss/cross_entropy"}))
    assert found.measure({"evaluate/loss/cross_entropy": 2.0}) == {"quality": -2.0, "score": -2.0}
    with pytest.raises(BadInput, match=r"no held-out metric .loss/cross_entropy. \(there are accuracy\)"):
        found.measure({"evaluate/accuracy": 0.5})
    with pytest.raises(BadInput, match="job: pipeline is none; give the stage a file of its own"):
        aim(
            search_of(
                tmp_path,
                {"job": "pipeline", "stages": {"a": job}},
                space={"run.seed": {"type": "choice", "values": [1]}},
            )
        )


def test_the_front_is_what_a_naive_loop_finds():
    rng = random.Random(0)
    points = [tuple(rng.randrange(4) for _ in range(3)) for _ in range(60)]

    def beaten(p):
        return any(all(a >= b for a, b in zip(q, p, strict=True)) and q != p for q in points)

    assert pareto.front(points) == [i for i, p in enumerate(points) if not beaten(p)]
    assert pareto.front([(1.0, math.nan), (0.0, 0.0)]) == [1]
    assert pareto.front([]) == []


def test_over_budget_ranks_below_all_within_and_by_the_excess():
    budgets = {"kl": 2.0, "length": 10.0}
    spent = [
        ({"kl": 1, "length": 9}, -50),
        ({"kl": 2.1, "length": 1}, 99),
        ({"kl": 4, "length": 1}, 99),
        ({"kl": math.nan, "length": 1}, 99),
    ]
    scores = [pareto.score(quality, s, budgets) for s, quality in spent]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == -50
    assert all(map(math.isfinite, scores))  # schedulers average them
    assert pareto.score(math.nan, {"kl": 0, "length": 0}, budgets) < scores[2]


def rows():
    """A careful trial, a better one within the budget, a hacker with the highest reward, one stopped early, one that failed."""
    made = [
        ("careful", "finished", 0.5, 0.8, 1e-4), ("good", "finished", 0.9, 3.0, 3e-4), ("hacker", "finished", 2.5, 40.0, 9e-3),
        ("early", "stopped", 1.2, 1.0, 5e-4), ("worse", "finished", 0.8, 3.5, 6e-4),
    ]  # fmt: skip
    found = []
    for name, state, reward, kl, lr in made:
        half = {"step": 2, "quality": reward / 2, "kl": kl / 2, "length": 8.0, "score": reward / 2}
        full = (
            []
            if state == "stopped"
            else [{"step": 4, "quality": reward, "kl": kl, "length": 8.0, "score": reward if kl <= 5 else -8e3}]
        )
        found.append(Row(name, name, state, {"learner.lr": lr}, [half, *full]))
    return [*found, Row("broken", "broken", "failed", {"learner.lr": 1e-2}, [], error="ValueError: no")]


def test_the_hacker_is_on_the_front_and_does_not_win(tmp_path):
    search = search_of(tmp_path)
    wanted = aim(search)
    assert wanted.words() == "highest reward with kl <= 5"
    assert findings.best(rows(), wanted).name == "good"
    assert [r.name for r in findings.front(rows(), wanted)] == ["careful", "good", "hacker"]
    only_hacker = [r for r in rows() if r.name in ("hacker", "early")]
    assert findings.best(only_hacker, wanted) is None
    assert "the nearest, hacker, has kl 40.00" in findings.why_none(only_hacker, wanted)
    assert findings.why_none(rows()[-1:], wanted) == "no trial reached its end: ValueError: no"


def test_what_is_written_can_be_trained(tmp_path):
    search = search_of(tmp_path)
    (tmp_path / "run").mkdir()
    console = Console(file=(tmp_path / "out.txt").open("w"), width=140)
    results = findings.conclude(rows(), search, aim(search), tmp_path / "run", console)
    assert results["best"] == "good"
    job = load(tmp_path / "run" / "best.yaml")
    assert job.learner.lr == 3e-4
    assert job.run.dir == str(tmp_path / "run" / "best")
    assert job.model_dump(exclude={"run", "learner"}) == load(tmp_path / "job.yaml").model_dump(
        exclude={"run", "learner"}
    )
    told = json.loads((tmp_path / "run" / "tune.json").read_text())
    assert [t["name"] for t in told["trials"]] == [r.name for r in rows()]
    shown = findings.panels(rows(), findings.front(rows(), aim(search)), None, search, aim(search))
    assert [len(p.points) for p in shown] == [5, 5]  # over KL and over the key
    assert shown[0].limit == 5
    assert {d.kind for d in shown[0].points if d.x == 40} == {"over"}
    assert "<svg" in (tmp_path / "run" / "trials.svg").read_text()
    console.file.flush()
    text = (tmp_path / "out.txt").read_text()
    assert text.index("good") < text.index("careful") < text.index("early")
    assert "broken: ValueError: no" in text


def test_importance_finds_the_key_that_matters(tmp_path):
    pytest.importorskip("optuna", reason="pip install 'rlhf-ray[optuna]'")
    flat = {"type": "uniform", "low": 0, "high": 1}
    search = search_of(tmp_path, space={"learner.lr": LR, "algorithm.kl.coef": flat})
    rng, found = random.Random(0), []
    for i in range(30):
        values = {"learner.lr": 10 ** rng.uniform(-4, -2), "algorithm.kl.coef": rng.random()}
        measured = {
            "step": 2,
            "quality": math.log10(values["learner.lr"]),
            "kl": -values["algorithm.kl.coef"],
            "length": 1.0,
            "score": 0.0,
        }
        found.append(Row(str(i), str(i), "finished", values, [measured]))
    weights = findings.importance(found, search)
    assert weights["learner.lr"]["quality"] > 0.8 > 0.2 > weights["algorithm.kl.coef"]["quality"]
    assert weights["algorithm.kl.coef"]["kl"] > 0.8
    assert findings.importance(found[:3], search) == {}


# clones --------------------------------------------------------------------------------------------------------------


def donor(tmp_path, steps, kl_coef=0.05):
    home = tmp_path / "trials" / "a_0"
    checkpoints = Checkpoints(home / "checkpoints", 2)
    for step in steps:

        def fill(directory: Path, step=step) -> None:
            (directory / "learner").mkdir()
            (directory / "learner" / "shard").write_text(f"weights of step {step}")

        checkpoints.write(step, fill, {"step": step, "kl_coef": kl_coef, "rollouts": {}})
    (home / "metrics.jsonl").write_text("".join(json.dumps({"step": i, "evaluate/reward": i}) + "\n" for i in range(4)))
    return home


@pytest.mark.parametrize(("asked", "got"), [(4, 4), (2, 6)])  # step 2 is pruned: the newest is as good
def test_a_clone_holds_the_donors_checkpoint_and_its_own_coefficient(tmp_path, asked, got):
    source, home = donor(tmp_path, [2, 4, 6]), tmp_path / "trials" / "b_1-1"
    home.mkdir(parents=True)
    job = Trials({**rl_job(evaluate=HELDOUT)}, tmp_path, None, 1).job({}, home)
    clone.clone(source, asked, home, job, {"algorithm.kl.coef": 0.2})
    found = Checkpoints(home / "checkpoints", 2).latest()  # which verifies sizes and hashes
    assert found.name == f"step-{got:06d}"
    assert (found / "learner" / "shard").read_text() == f"weights of step {got}"
    assert json.loads((found / "state.json").read_text())["kl_coef"] == 0.2
    assert last_evaluation(home)["evaluate/reward"] == 3


def test_nothing_to_clone_is_said(tmp_path):
    (tmp_path / "b_1").mkdir()
    job = Trials({**rl_job(evaluate=HELDOUT)}, tmp_path, None, 1).job({}, tmp_path / "b_1")
    with pytest.raises(BadInput, match="no checkpoint to clone"):
        clone.clone(tmp_path / "nobody", 2, tmp_path / "b_1", job, {})


def test_where_a_trial_lives(tmp_path):
    own, other = {"trial": "a_1", "run": "a_1", "step": 2}, {"trial": "a_0", "run": "a_0", "step": 4}
    assert clone.settle(tmp_path, "a_1", None, {}) == (tmp_path / "a_1", None)
    (tmp_path / "a_1").mkdir()
    (tmp_path / "a_10").mkdir()  # another trial's
    assert clone.settle(tmp_path, "a_1", own, {}) == (tmp_path / "a_1", None)
    assert clone.settle(tmp_path, "a_1", other, {"x": 1}) == (tmp_path / "a_1-1", other)
    assert clone.settle(tmp_path, "a_1", other, {"x": 1}) == (tmp_path / "a_1-1", other)  # it failed before it reported
    assert clone.settle(tmp_path, "a_1", other, {"x": 2}) == (tmp_path / "a_1-2", other)
    assert clone.settle(tmp_path, "a_1", {**own, "run": "a_1-1"}, {}) == (tmp_path / "a_1-1", None)
    assert clone.settle(tmp_path, "a_1", None, {}) == (tmp_path / "a_1-2", None)


def test_numpys_numbers_become_pythons():
    np = pytest.importorskip("numpy")
    assert json.dumps(plain({"a": np.int64(3), "b": np.float64(0.5), "c": "x"})) == '{"a": 3, "b": 0.5, "c": "x"}'


def test_a_tied_metric_keeps_both_on_the_front():
    same = [(1.0, -1.0), (1.0, -1.0)]
    assert pareto.front(same) == [0, 1]
    assert not any(pareto.dominates(a, b) for a, b in itertools.permutations(same, 2))


def test_no_budget_is_refused_below_zero():
    with pytest.raises(ValidationError, match="greater than 0"):
        ObjectiveConfig(max_kl=0)


def test_the_job_file_of_the_repository_is_a_search():
    search = load_search(JOBS["tune"])
    assert aim(search).budgets["kl"] > 0


# what Ray Tune is told ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_concurrent", [1, 2, 4])
def test_a_trial_reserves_a_share_of_the_nodes_and_nothing_for_its_driver(tmp_path, max_concurrent):
    found = search_of(tmp_path)
    trials = Trials({**found.base, "run": {}, "cluster": {"device": "cpu"}}, tmp_path, aim(found), max_concurrent)
    group = trials.group({"learner.lr": 1e-3}, [{"CPU": 4.0}])
    assert group.head_bundle_is_empty
    reserved = sum(bundle["CPU"] for bundle in group.bundles)
    assert (
        0.8 * 4 / max_concurrent < reserved <= 4 / max_concurrent or reserved == 3
    )  # three workers take a core each at most
    demand = Demand(counts={"learner": 1, "rollout": 1, "reward": 1})
    plan = plan_placement(trials.job({}, tmp_path).cluster, demand, group.bundles)
    assert plan.nodes == [0]  # the same plan again, with the bundles as its nodes


def test_gpus_are_not_divided(tmp_path):
    found = search_of(tmp_path)
    trials = Trials({**found.base, "run": {}, "cluster": {"device": "cuda"}}, tmp_path, aim(found), 4)
    (bundle,) = trials.group({}, [{"CPU": 16.0, "GPU": 8.0}]).bundles
    assert bundle["GPU"] == 1
    with pytest.raises(BadInput, match="needs 1 GPUs"):
        trials.group({}, [{"CPU": 16.0}])


def test_no_scheduler_ends_a_trial_at_its_last_step(tmp_path):
    found = search_of(tmp_path, scheduler={"type": "asha", "reduction_factor": 2})
    made = tune.scheduler(found.tune, base_job(found))
    made.set_search_properties("score", "max")
    trial = SimpleNamespace(trial_id="a")
    made.on_trial_add(None, trial)
    for step in (2, 4):
        assert made.on_trial_result(None, trial, {"step": step, "score": 0.0}) == "CONTINUE"
    for name, score, verdict in (("b", -1.0, "STOP"), ("c", 1.0, "CONTINUE")):
        trial = SimpleNamespace(trial_id=name)
        made.on_trial_add(None, trial)
        assert made.on_trial_result(None, trial, {"step": 2, "score": score}) == verdict


def test_what_is_perturbed_stays_inside_the_space(tmp_path):
    space = {"learner.lr": LR, "algorithm.group_size": {"type": "randint", "low": 1, "high": 5}}
    explore = tune._inside(TuneConfig(space=space))
    assert explore({"learner.lr": 0.012, "algorithm.group_size": 6}) == {"learner.lr": 0.01, "algorithm.group_size": 4}
    assert explore({"learner.lr": 1e-5, "algorithm.group_size": 0}) == {"learner.lr": 1e-4, "algorithm.group_size": 1}


def test_a_searcher_that_is_not_installed_is_said_with_its_remedy():
    with pytest.raises(BadInput, match=r"pip install 'rlhf-ray\[no_such_searcher\]'"):
        tune._require("no_such_searcher")


@pytest.mark.parametrize(("rounds", "concurrent", "fits"), [(4, 2, False), (4, 3, True), (27, 4, False), (27, 5, True)])
def test_hyperband_wants_more_at_a_time_than_its_first_bracket_holds(rounds, concurrent, fits):
    space = {"learner.lr": {"type": "grid", "values": [1e-3, 2e-3]}}
    config = TuneConfig(
        space=space,
        scheduler={"type": "hyperband"},
        max_concurrent=concurrent,
        objective={"metric": "-loss/cross_entropy"},
    )
    if fits:
        tune._check_brackets(config, rounds)
        return
    with pytest.raises(BadInput, match=rf"tune.max_concurrent: {concurrent} .*set it to {concurrent + 1} or more"):
        tune._check_brackets(config, rounds)
