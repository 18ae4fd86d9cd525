"""ILQL through the command on walks that are mostly bad: Q nears the exact optimum, and guided decoding takes the best walks."""

import json

import numpy as np
import pytest
import torch
import yaml

from rlhf_ray.models.load import load_model
from tests import chain
from tests.helpers import ROOT, TINY, run_job

pytestmark = [pytest.mark.learning, pytest.mark.timeout(900)]

EXPECTILE = 0.98
REWARD = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.chain import paid

def reward(prompts, completions, **columns):
    return [paid(p, c) for p, c in zip(prompts, completions)]
"""


def job(folder):
    """Value learning on the walks, then answers of the behaviour clone, and of the same model guided."""
    rows = [chain.row(walk) for walk in chain.walks(1500, seed=0)]
    assert np.mean([row["reward"] for row in rows]) < 0.25
    (folder / "walks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": place}) for place in chain.PLACES))
    (folder / "reward.py").write_text(REWARD)
    chain.tokenizer().save_pretrained(folder / "tokenizer")
    asked = {
        "job": "evaluate", "model": {"path": "stage:ilql"},
        "data": {"path": str(folder / "prompts.jsonl"), "max_prompt_tokens": 2},
        "rewards": {"terms": [{"name": "paid", "type": "function", "path": f"{folder}/reward.py:reward"}]},
    }  # fmt: skip
    learned = {
        "job": "ilql", "model": {"init": TINY, "tokenizer": str(folder / "tokenizer")},
        "data": {"path": str(folder / "walks.jsonl")}, "num_steps": 500, "batch_size": 64, "max_length": 32,
        "gamma": chain.GAMMA, "expectile": EXPECTILE, "conservative_coef": 0.01, "target_rate": 0.1,
        "learner": {"lr": 5e-3, "schedule": "linear"},
    }  # fmt: skip
    guided = {"max_new_tokens": 16, "engine": {"guide": 30.0}}
    return {
        "job": "pipeline",
        "cluster": {"num_threads": 1},
        "stages": {
            "ilql": learned,
            "plain": {**asked, "greedy": False, "samples": 100, "rollout": {"max_new_tokens": 16}},
            "guided": {**asked, "against": "stage:ilql", "rollout": guided},
        },
    }


def learned_q(path):
    """The target heads' Q of each walk's first token over the vocabulary: (SIZE, V)."""
    model = load_model("values", str(path))
    assert model.heads.restore(str(path))
    places = torch.arange(chain.SIZE)
    with torch.no_grad():
        hidden = model.hidden(places + chain.FIRST, torch.ones_like(places), places)
        return model.heads.smaller_target_q(hidden).numpy()


def test_values_near_the_optimum_and_guidance_takes_the_best_walks(tmp_path):
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job(tmp_path), sort_keys=False))
    run_job(tmp_path / "job.yaml", tmp_path / "run", timeout=800)
    q, best = learned_q(tmp_path / "run" / "ilql" / "model"), chain.optimal()
    ids = [
        [chain.FIRST + chain.moved(p, a) for a in (chain.LEFT, chain.RIGHT)] + [chain.STOPPED]
        for p in range(chain.SIZE)
    ]
    q_of_actions = np.take_along_axis(q, np.array(ids), 1)
    limit = chain.expectile_values(lambda values: chain.expectile(values, EXPECTILE))
    assert (
        np.abs(q_of_actions - limit).max() < 0.1
    )  # what IQL converges to with this expectile, below the optimum by at most 0.05
    assert np.abs(q_of_actions - best).max() < 0.15
    assert (q_of_actions.argmax(1) == best.argmax(1)).all()
    for place, takes in enumerate(ids):  # a jump is worth less than any step: the conservative term
        assert np.delete(q[place], takes).max() < q_of_actions[place].min()
    results = {n: json.loads((tmp_path / "run" / n / "evaluation.json").read_text()) for n in ("plain", "guided")}
    assert 0.1 < results["plain"]["terms"]["paid"]["mean"] < 0.3  # as the data
    assert results["guided"]["terms"]["paid"]["mean"] == 1.0
    assert results["guided"]["wins"]["paid"]["mean"] > 0.9
