"""The quickstart for three seeds, the reward hack on demand, and a reward model of shuffled labels. About 15 minutes."""

import json
import random

import pytest
import yaml

from rlhf_ray.toy import world as toy
from tests.helpers import JOBS, ROOT, run_job

pytestmark = [pytest.mark.learning, pytest.mark.timeout(1800)]


def results(run_dir):
    return json.loads((run_dir / "manifest.json").read_text())["results"]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """quickstart(seed) -> the run directory of a finished quickstart, run once a seed."""
    done = {}

    def run(seed):
        if seed not in done:
            done[seed] = tmp_path_factory.mktemp(f"quickstart{seed}")
            run_job(ROOT / "jobs" / "quickstart.yaml", done[seed], f"run.seed={seed}", timeout=1200)
        return done[seed]

    return run


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_truth_rises(quickstart, seed):
    measures = results(quickstart(seed))
    assert measures["reward"]["evaluate/reward/accuracy"] >= 0.85  # one pair in twenty is flipped: 0.95 is the most
    for name in ("truth", "sentiment"):
        assert measures["ppo"][f"part/{name}"]["low"] > 0.4
    assert measures["ppo"]["part/validity"]["after"] > 0.9
    assert measures["ppo"]["kl"]["after"] < 10


def test_without_a_penalty_the_reward_model_is_hacked(quickstart, tmp_path):
    base = quickstart(0)
    overrides = [f"model.path={base}/sft/model", f"rewards.terms.0.path={base}/reward/model"]
    run_job(JOBS["hacked"], tmp_path / "hacked", *overrides, timeout=600)
    careful, hacked = results(base)["ppo"], results(tmp_path / "hacked")
    assert hacked["part/model"]["low"] > 0
    assert hacked["kl"]["after"] > 3 * careful["kl"]["after"]
    assert hacked["part/truth"]["after"] < careful["part/truth"]["after"] - 0.3


def test_shuffled_labels_teach_no_sentiment(quickstart, tmp_path):
    base, draw, lines = quickstart(0), random.Random(0), []
    for row in toy.generate("reviews/pairs", "train", 3000, 0):
        sides = [row["chosen"], row["rejected"]]
        draw.shuffle(sides)
        lines.append(json.dumps({"prompt": row["prompt"], "chosen": sides[0], "rejected": sides[1]}))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    job = yaml.safe_load((ROOT / "jobs" / "quickstart.yaml").read_text())
    stages = {name: job["stages"][name] for name in ("reward", "ppo")}
    stages["reward"]["model"]["path"] = f"{base}/pretrain/model"
    stages["reward"]["data"] = {"path": str(tmp_path / "pairs.jsonl")}
    stages["ppo"]["model"]["path"] = f"{base}/sft/model"
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({"job": "pipeline", "stages": stages}, sort_keys=False))
    run_job(tmp_path / "job.yaml", tmp_path / "run", timeout=900)
    measures = results(tmp_path / "run")
    assert abs(measures["reward"]["evaluate/reward/accuracy"] - 0.5) < 0.1
    assert measures["ppo"]["part/sentiment"]["after"] < 0.5 * results(base)["ppo"]["part/sentiment"]["after"]
