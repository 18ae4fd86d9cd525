"""Real models: stories260k made happier, by a reward model of SST-2 and by a rule, three seeds. About 15 minutes.

RLHF_RAY_REAL names a folder with models/stories260k and data/sst2/{train,dev}.tsv.
"""

import json
import os
from pathlib import Path

import pytest

from tests.helpers import JOBS, run_job

REAL = os.environ.get("RLHF_RAY_REAL")
pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(REAL is None, reason="RLHF_RAY_REAL names no folder with models and data"),
]


def results(run_dir):
    return json.loads((run_dir / "manifest.json").read_text())["results"]


@pytest.fixture(scope="module")
def paths():
    return {name: str(Path(REAL) / name) for name in ("models/stories260k", "data/sst2/train.tsv", "data/sst2/dev.tsv")}


@pytest.fixture(scope="module")
def reward_model(paths, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("reward")
    data = [f"data.path={paths['data/sst2/train.tsv']}", f"evaluate.data.path={paths['data/sst2/dev.tsv']}"]
    job = JOBS["stories_reward"]
    run_job(job, run_dir, f"model.path={paths['models/stories260k']}", *data, timeout=2000)
    return run_dir


def test_the_reward_model_knows_sentiment(reward_model):
    assert results(reward_model)["evaluate/reward/accuracy"] >= 0.78


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_stories_get_happier(paths, reward_model, monkeypatch, tmp_path, algorithm, seed):
    monkeypatch.setenv("SST2", paths["data/sst2/train.tsv"])
    model = [f"rewards.terms.0.path={reward_model}/model"] if algorithm == "ppo" else []
    job = JOBS[f"stories_{algorithm}"]
    run_job(job, tmp_path, f"model.path={paths['models/stories260k']}", f"run.seed={seed}", *model, timeout=900)
    measures = results(tmp_path)
    for name in ("words", "judge"):
        assert measures[f"part/{name}"]["low"] > 0
