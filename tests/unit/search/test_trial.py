"""A trial: its job, and the resources that it reserves."""

import json

import numpy as np
import pytest

from rlhf_ray.actors.placement import Demand, plan_placement
from rlhf_ray.config import BadInput
from rlhf_ray.search.objective import search_objective
from rlhf_ray.search.trial import Trials, num_evaluations, python_values
from tests.unit.search.searches import LR, make_search


def make_trials(tmp_path, cluster, max_concurrent, **tune):
    search = make_search(tmp_path, **tune)
    return Trials(
        tree={**search.base, "run": {"seed": 3}, "cluster": cluster},
        directory=tmp_path / "trials",
        objective=search_objective(search),
        max_concurrent=max_concurrent,
    )


def test_values_reach_the_job_of_a_trial(tmp_path):
    space = {"learner.lr": LR, "rewards.terms.0.weight": {"type": "uniform", "low": 0, "high": 1}}
    objective = {"max_kl": 5.0, "metric": "part/share"}
    trials = make_trials(tmp_path, {}, 2, space=space, objective=objective)
    job = trials.job({"learner.lr": 0.003, "rewards.terms.0.weight": 0.25}, tmp_path / "trials" / "x")
    assert (job.learner.lr, job.rewards.terms[0].weight, job.run.seed) == (0.003, 0.25, 3)
    assert job.run.dir == str(tmp_path / "trials" / "x")
    assert job.checkpoint.every == job.evaluate.every == 2  # what is reported can be continued
    assert [num_evaluations(job, step) for step in (2, 3, 4)] == [1, 2, 2]


@pytest.mark.parametrize("max_concurrent", [1, 2, 4])
def test_a_trial_reserves_a_share_of_the_nodes_and_nothing_for_its_driver(tmp_path, max_concurrent):
    trials = make_trials(tmp_path, {"device": "cpu"}, max_concurrent)
    group = trials.placement_group({"learner.lr": 1e-3}, [{"CPU": 4.0}])
    assert group.head_bundle_is_empty
    reserved = sum(bundle["CPU"] for bundle in group.bundles)
    share = 4 / max_concurrent
    assert 0.8 * share < reserved <= share or reserved == 3  # three workers take at most a core each
    demand = Demand(counts={"learner": 1, "rollout": 1, "reward": 1})
    plan = plan_placement(trials.job({}, tmp_path).cluster, demand, group.bundles)
    assert plan.nodes == [0]  # the same plan again, with the bundles as its nodes


def test_gpus_are_not_divided(tmp_path):
    trials = make_trials(tmp_path, {"device": "cuda"}, 4)
    (bundle,) = trials.placement_group({}, [{"CPU": 16.0, "GPU": 8.0}]).bundles
    assert bundle["GPU"] == 1
    with pytest.raises(BadInput, match="needs 1 GPUs"):
        trials.placement_group({}, [{"CPU": 16.0}])


def test_numpys_numbers_become_pythons():
    values = python_values({"a": np.int64(3), "b": np.float64(0.5), "c": "x"})
    assert json.dumps(values) == '{"a": 3, "b": 0.5, "c": "x"}'
