"""The objective of a search: what is measured, and which jobs and metrics are refused."""

import pytest

from rlhf_ray.config import BadInput, load_search
from rlhf_ray.search.objective import search_objective
from tests.helpers import JOBS, rl_job
from tests.unit.search.searches import HELDOUT, LR, make_search

CLASSIFY = {
    "job": "classify",
    "model": rl_job()["model"],
    "data": {"path": "toy:reviews/labels"},
    "num_steps": 4,
    "evaluate": {"every": 2, "data": {"path": "toy:reviews/labels", "split": "heldout"}},
}


@pytest.mark.parametrize(
    ("job", "tune", "message"),
    [
        (rl_job(), {}, "give evaluate.data"),
        (rl_job(evaluate={**HELDOUT, "every": 0}), {"scheduler": {"type": "asha"}}, "set evaluate.every"),
        (rl_job(evaluate=HELDOUT), {"objective": {}}, "the trial that hacks the reward wins"),
        (rl_job(evaluate=HELDOUT), {"objective": {"max_kl": 1, "metric": "part/truth"}},
         "held-out answers have no 'part/truth'; they have reward, kl, length, truncated, part/share"),
        (rl_job(evaluate=HELDOUT), {"space": {"rewards.terms.0.weight": LR}}, "changes the reward itself"),
        (CLASSIFY, {"objective": {}}, "job: classify has no metric that is always the best"),
        (CLASSIFY, {"objective": {"metric": "accuracy", "max_kl": 3}}, "budgets of job: ppo"),
        ({"job": "pipeline", "stages": {"a": CLASSIFY}}, {"space": {"run.seed": {"type": "choice", "values": [1]}}},
         "job: pipeline is none; give the stage a job file of its own"),
    ],
)  # fmt: skip
def test_an_objective_that_does_not_fit_is_refused(tmp_path, job, tune, message):
    with pytest.raises(BadInput, match=message):
        search_objective(make_search(tmp_path, job, **tune))


def test_the_objective_of_rl_has_budgets_and_costs(tmp_path):
    objective = search_objective(make_search(tmp_path, objective={"max_kl": 5.0, "max_length": 20.0}))
    assert objective.describe() == "highest reward with kl <= 5 and length <= 20"
    measures = objective.measure({"evaluate/reward": 0.5, "evaluate/kl": 6.0, "evaluate/length": 3.0})
    assert not objective.within_budgets(measures)
    assert measures["score"] < -100 < measures["quality"]
    assert objective.pareto_point(measures) == (0.5, -6.0, -3.0)


def test_the_objective_of_supervised_jobs_is_one_of_their_metrics(tmp_path):
    objective = search_objective(make_search(tmp_path, CLASSIFY, objective={"metric": "-loss/cross_entropy"}))
    assert objective.describe() == "lowest loss/cross_entropy"
    measures = objective.measure({"evaluate/loss/cross_entropy": 2.0})
    assert measures == {"quality": -2.0, "score": -2.0}
    assert objective.metric_value(measures) == 2.0
    with pytest.raises(BadInput, match="no held-out metric 'loss/cross_entropy'; this job has accuracy"):
        objective.measure({"evaluate/accuracy": 0.5})


def test_the_job_file_of_the_repository_is_a_search():
    assert search_objective(load_search(JOBS["tune"])).budgets["kl"] > 0
