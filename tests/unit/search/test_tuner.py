"""What Ray Tune is given: distributions, schedulers, and the cases that are refused."""

from types import SimpleNamespace

import pytest

from rlhf_ray.config import BadInput, TuneConfig
from rlhf_ray.search.objective import base_job
from rlhf_ray.search.tuner import check_hyperband, clip_to_space, require_searcher, tune_distribution, tune_scheduler
from tests.unit.search.searches import LR, make_search


def test_every_distribution_is_one_of_ray_tunes():
    space = TuneConfig(
        space={
            "a": {"type": "choice", "values": [1, 2]}, "b": {"type": "uniform", "low": -1, "high": 2}, "c": LR,
            "d": {"type": "quniform", "low": 0, "high": 1, "q": 0.25}, "e": {"type": "randint", "low": 3, "high": 5},
        }
    ).space  # fmt: skip
    draws = {key: {tune_distribution(d).sample() for _ in range(200)} for key, d in space.items()}
    assert draws["a"] == {1, 2}
    assert -1 <= min(draws["b"]) < -0.5
    assert 1e-4 <= min(draws["c"]) < 1e-3  # one in two is: uniform, it would be one in ten
    assert sorted(draws["c"])[100] < 3e-3
    assert draws["d"] == {0, 0.25, 0.5, 0.75, 1}
    assert draws["e"] == {3, 4}
    grid = TuneConfig(space={"f": {"type": "grid", "values": ["x", "y"]}}).space["f"]
    assert tune_distribution(grid) == {"grid_search": ["x", "y"]}


def test_no_scheduler_ends_a_trial_at_its_last_step(tmp_path):
    search = make_search(tmp_path, scheduler={"type": "asha", "reduction_factor": 2})
    scheduler = tune_scheduler(search.tune, base_job(search))
    scheduler.set_search_properties("score", "max")
    trial = SimpleNamespace(trial_id="a")
    scheduler.on_trial_add(None, trial)
    for step in (2, 4):
        assert scheduler.on_trial_result(None, trial, {"step": step, "score": 0.0}) == "CONTINUE"
    for name, score, decision in (("b", -1.0, "STOP"), ("c", 1.0, "CONTINUE")):
        trial = SimpleNamespace(trial_id=name)
        scheduler.on_trial_add(None, trial)
        assert scheduler.on_trial_result(None, trial, {"step": 2, "score": score}) == decision


def test_what_is_perturbed_stays_inside_the_space():
    space = {"learner.lr": LR, "algorithm.group_size": {"type": "randint", "low": 1, "high": 5}}
    clip = clip_to_space(TuneConfig(space=space).space)
    assert clip({"learner.lr": 0.012, "algorithm.group_size": 6}) == {"learner.lr": 0.01, "algorithm.group_size": 4}
    assert clip({"learner.lr": 1e-5, "algorithm.group_size": 0}) == {"learner.lr": 1e-4, "algorithm.group_size": 1}


def test_a_searcher_that_is_not_installed_is_refused_with_its_remedy():
    require_searcher("random")
    with pytest.raises(BadInput, match=r"pip install 'rlhf-ray\[no_such_searcher\]'"):
        require_searcher("no_such_searcher")


@pytest.mark.parametrize(("rungs", "concurrent", "fits"), [(4, 2, False), (4, 3, True), (27, 4, False), (27, 5, True)])
def test_hyperband_needs_more_trials_at_a_time_than_its_first_bracket_holds(rungs, concurrent, fits):
    config = TuneConfig(
        space={"learner.lr": {"type": "grid", "values": [1e-3, 2e-3]}},
        scheduler={"type": "hyperband"},
        max_concurrent=concurrent,
        objective={"metric": "-loss/cross_entropy"},
    )
    if fits:
        check_hyperband(config, rungs)
        return
    with pytest.raises(BadInput, match=rf"tune.max_concurrent: with {concurrent} .*set it to {concurrent + 1} or more"):
        check_hyperband(config, rungs)
