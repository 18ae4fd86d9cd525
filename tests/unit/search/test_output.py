"""What a search prints and writes at its end."""

import json

import pytest
from rich.console import Console

from rlhf_ray.config import load_job
from rlhf_ray.search.objective import search_objective
from rlhf_ray.search.output import print_results, scatter_panels, write_results
from rlhf_ray.search.results import summarise
from tests.unit.search.searches import make_search
from tests.unit.search.trials import five_trials


@pytest.fixture
def search(tmp_path):
    (tmp_path / "run").mkdir()
    return make_search(tmp_path)


@pytest.fixture
def results(search):
    return summarise(five_trials(), search, search_objective(search))


def test_the_best_job_is_written_as_a_file_that_can_be_trained(tmp_path, search, results):
    write_results(results, search, tmp_path / "run", Console(quiet=True))
    job = load_job(tmp_path / "run" / "best.yaml")
    assert job.learner.lr == 3e-4
    assert job.run.dir == str(tmp_path / "run" / "best")
    base = load_job(tmp_path / "job.yaml")
    assert job.model_dump(exclude={"run", "learner"}) == base.model_dump(exclude={"run", "learner"})


def test_tune_json_has_every_trial(tmp_path, search, results):
    write_results(results, search, tmp_path / "run", Console(quiet=True))
    written = json.loads((tmp_path / "run" / "tune.json").read_text())
    assert written.keys() == {"aim", "best", "front", "importance", "trials"}
    assert (written["aim"], written["best"]) == ("highest reward with kl <= 5", "good")
    assert written["front"] == ["careful", "good", "hacker"]
    assert [trial["name"] for trial in written["trials"]] == [trial.name for trial in five_trials()]
    assert written["trials"][0].keys() == {"name", "run", "state", "values", "history", "seconds", "error"}


def test_without_a_best_trial_the_reason_is_written_and_no_job(tmp_path, search):
    trials = [trial for trial in five_trials() if trial.name in ("hacker", "broken")]
    results = summarise(trials, search, search_objective(search))
    write_results(results, search, tmp_path / "run", Console(quiet=True))
    written = json.loads((tmp_path / "run" / "tune.json").read_text())
    assert written["best"] is None
    assert written["why"].startswith("none of 1 finished trials keeps kl <= 5")
    assert not (tmp_path / "run" / "best.yaml").exists()


def test_the_best_trial_is_printed_first_and_errors_below(tmp_path, results):
    console = Console(width=140, record=True, quiet=False, file=(tmp_path / "out.txt").open("w"))
    print_results(results, tmp_path / "run", console)
    text = console.export_text()
    assert text.index("good") < text.index("careful") < text.index("early")
    assert "broken: ValueError: no" in text
    assert "best: good (reward 0.900, kl 3.00, length 8.00)" in text.replace("\n", "")


def test_the_plot_has_a_panel_over_kl_and_one_for_each_key(tmp_path, search, results):
    over_kl, over_lr = scatter_panels(results, search)
    assert [len(panel.points) for panel in (over_kl, over_lr)] == [5, 5]
    assert over_kl.limit == 5
    assert {point.kind for point in over_kl.points if point.x == 40} == {"over"}
    assert {point.kind for point in over_kl.points if point.x == 3.0} == {"chosen"}
    assert over_lr.log
    write_results(results, search, tmp_path / "run", Console(quiet=True))
    assert "<svg" in (tmp_path / "run" / "trials.svg").read_text()
