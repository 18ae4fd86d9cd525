"""The section `tune:`: what distributions draw, how a space may be written, and what is refused."""

import math

import pytest
import yaml
from pydantic import ValidationError

from rlhf_ray.config import BadInput, ObjectiveConfig, TuneConfig, load_job, load_search
from rlhf_ray.config.tune import values_to_check
from tests.helpers import rl_job
from tests.unit.search.searches import LR, make_search


def test_every_distribution_draws_inside_its_bounds():
    space = TuneConfig(
        space={
            "a": {"type": "choice", "values": [1, 2]},
            "b": {"type": "uniform", "low": -1, "high": 2},
            "c": LR,
            "d": {"type": "quniform", "low": 0, "high": 1, "q": 0.25},
            "e": {"type": "randint", "low": 3, "high": 5},
            "f": {"type": "grid", "values": ["x", "y"]},
        }
    ).space
    draws = values_to_check(space, 400, 0)[-400:]
    assert {v["a"] for v in draws} == {1, 2}
    assert {v["d"] for v in draws} == {0, 0.25, 0.5, 0.75, 1}
    assert {v["e"] for v in draws} == {3, 4}
    assert {v["f"] for v in draws} == {"x", "y"}
    assert -1 <= min(v["b"] for v in draws) < -0.5
    assert 1.5 < max(v["b"] for v in draws) <= 2
    logs = sorted(math.log10(v["c"]) for v in draws)
    assert -4 <= logs[0] < logs[-1] <= -2
    assert logs[200] == pytest.approx(-3, abs=0.15)  # the median of a log-uniform is the geometric mean


def test_the_extremes_of_every_key_are_checked():
    space = TuneConfig(space={"a": LR, "b": {"type": "randint", "low": 3, "high": 9}}).space
    values = values_to_check(space)
    assert {v["a"] for v in values} == {1e-4, 1e-2}
    assert {v["b"] for v in values} == {3, 8}


def test_a_space_may_be_nested_and_one_bound_changed_on_the_command_line(tmp_path):
    nested = make_search(
        tmp_path, space={"learner": {"lr": LR}, "algorithm": {"kl": {"coef": {"type": "choice", "values": [0.1]}}}}
    )
    assert [*nested.tune.space] == ["learner.lr", "algorithm.kl.coef"]
    changed = make_search(tmp_path, overrides=["tune.space.learner.lr.high=0.5", "tune.num_samples=3"])
    assert changed.tune.space["learner.lr"].high == 0.5
    assert changed.tune.space["learner.lr"].low == 1e-4
    assert changed.tune.num_samples == 3


def test_every_combination_of_grids_is_a_trial():
    grids = {"a": {"type": "grid", "values": [1, 2, 3]}, "b": {"type": "grid", "values": [4, 5]}, "c": LR}
    assert TuneConfig(space=grids, num_samples=4).num_trials == 24
    assert TuneConfig(space={"c": LR}, num_samples=4).num_trials == 4


def test_train_checks_the_section_and_leaves_it_out(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump({**rl_job(), "tune": {"space": {"learner.lr": LR}}}))
    assert not hasattr(load_job(file), "tune")
    file.write_text(yaml.safe_dump({**rl_job(), "tune": {"space": {"learner.lr": {**LR, "hihg": 1}}}}))
    with pytest.raises(BadInput, match=r"tune.space.learner.lr.*'hihg'.*did you mean 'high'"):
        load_job(file)


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"space": {"learner.lrr": LR}}, r"learner: unknown key 'lrr'; did you mean 'lr'"),
        ({"space": {"learner.lr": {"type": "loguniform", "low": -1, "high": 1}}}, r"low.*greater than 0"),
        ({"space": {"learner.lr": {"type": "uniform", "low": 1, "high": 0}}}, r"low = 1 is not below high = 0"),
        ({"space": {"learner.lr": {"type": "uniform", "low": -1, "high": 1}}}, r"learner.lr=-1.*learner.lr"),
        ({"space": {"learner.lr": {"type": "gauss", "low": 1}}}, r"gauss"),
        ({"space": {"rewards.terms.3.weight": LR}}, r"'3' is not an index of the list of 1"),
        ({"space": {"evaluate.greedy": {"type": "choice", "values": [True]}}}, r"trials must be measured alike"),
        ({"space": {"cluster.colocate": {"type": "choice", "values": [True]}}}, r"cluster.colocate cannot be searched"),
        ({"space": {"run.dir": {"type": "choice", "values": ["a"]}}}, r"run.dir cannot be searched"),
        ({"space": {"num_steps": {"type": "choice", "values": [2]}}, "scheduler": {"type": "asha"}},
         r"num_steps cannot be searched"),
        ({"space": {"run.seed": {"type": "choice", "values": [2]}}, "scheduler": {"type": "pbt"}},
         r"search it without pbt"),
        ({"space": {"learner.lr": {"type": "grid", "values": [1]}}, "searcher": {"type": "optuna"}}, r"is a grid"),
        ({"searcher": {"type": "optuna"}, "scheduler": {"type": "pbt"}}, r"take random instead of optuna"),
        ({"num_samples": 1, "scheduler": {"type": "pbt"}}, r"num_samples: 1, and pbt needs at least 2 trials"),
        ({"space": {"learner.lr": {"type": "quniform", "low": 0, "high": 1, "q": 0.3}}}, r"multiples of q"),
        ({"space": {"rollout.prompts_per_step": {"type": "choice", "values": [8, 9]}, "algorithm.num_mini_batches":
            {"type": "choice", "values": [8]}}}, r"prompts_per_step=9.*do not divide"),
        ({"num_sample": 3}, r"unknown key 'num_sample'; did you mean 'num_samples'"),
    ],
)  # fmt: skip
def test_a_space_that_makes_no_job_is_refused_before_anything_starts(tmp_path, tune, message):
    with pytest.raises(BadInput, match=message):
        make_search(tmp_path, **tune)


def test_a_file_without_the_section_is_refused(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(rl_job()))
    with pytest.raises(BadInput, match="no section `tune:`"):
        load_search(file)


def test_a_budget_must_be_above_zero():
    with pytest.raises(ValidationError, match="greater than 0"):
        ObjectiveConfig(max_kl=0)
