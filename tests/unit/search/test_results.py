"""Results of a search: the front, the best trial within the budgets, and the importance of keys."""

import math
import random

import pytest

from rlhf_ray.search.objective import search_objective
from rlhf_ray.search.results import (
    TrialResult,
    best_trial,
    importance_of_keys,
    pareto_front,
    why_none_is_best,
)
from tests.unit.search.searches import LR, make_search
from tests.unit.search.trials import five_trials


def test_the_hacker_is_on_the_front_and_does_not_win(tmp_path):
    objective, trials = search_objective(make_search(tmp_path)), five_trials()
    assert best_trial(trials, objective).name == "good"
    assert [t.name for t in pareto_front(trials, objective)] == ["careful", "good", "hacker"]
    over_budget = [t for t in trials if t.name in ("hacker", "early")]
    assert best_trial(over_budget, objective) is None
    assert "the nearest, hacker, has kl 40.00" in why_none_is_best(over_budget, objective)
    failed = [t for t in trials if t.name == "broken"]
    assert why_none_is_best(failed, objective) == "no trial reached its end: ValueError: no"


def test_importance_finds_the_key_that_matters(tmp_path):
    pytest.importorskip("optuna", reason="pip install 'rlhf-ray[optuna]'")
    flat = {"type": "uniform", "low": 0, "high": 1}
    search = make_search(tmp_path, space={"learner.lr": LR, "algorithm.kl.coef": flat})
    rng, trials = random.Random(0), []
    for i in range(30):
        values = {"learner.lr": 10 ** rng.uniform(-4, -2), "algorithm.kl.coef": rng.random()}
        measures = {
            "step": 2,
            "quality": math.log10(values["learner.lr"]),
            "kl": -values["algorithm.kl.coef"],
            "length": 1.0,
            "score": 0.0,
        }
        trials.append(TrialResult(name=str(i), run=str(i), state="finished", values=values, history=[measures]))
    importance = importance_of_keys(trials, search)
    assert importance["learner.lr"]["quality"] > 0.8 > 0.2 > importance["algorithm.kl.coef"]["quality"]
    assert importance["algorithm.kl.coef"]["kl"] > 0.8
    assert importance_of_keys(trials[:3], search) == {}
