"""Every stage learns the toy dataset: supervised ones reach known values, preferences and best-of-n move samples, and each RL
algorithm raises what it is rewarded for. Three pipelines, about 10 minutes."""

import json

import pytest
import yaml

from rlhf_ray.toy import world as toy
from tests.helpers import ROOT, run_job

pytestmark = [pytest.mark.learning, pytest.mark.timeout(3600)]

BERT = {
    "model_type": "bert", "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 3,
    "max_position_embeddings": 128,
}  # fmt: skip
PREFERENCES = {
    "dpo": {"type": "dpo", "beta": 0.1},
    "ipo": {"type": "ipo"},
    "kto": {"type": "kto"},
    "orpo": {"type": "orpo"},
    "simpo": {"type": "simpo"},
}
ALGORITHMS = (
    "ppo", "grpo", "dr_grpo", "dapo", "rloo", "reinforce", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "remax",
    "gspo", "cispo", "online_dpo",
)  # fmt: skip
PROMPTS = {"path": "toy:reviews/prompts", "max_prompt_tokens": 32}
HELDOUT = {**PROMPTS, "split": "heldout", "size": 128}
SENTIMENT = {"terms": [{"name": "sentiment", "type": "rule", "rule": "toy_sentiment"}]}


def data(task, size=4000):
    """data and evaluate sections of one task of the toy dataset."""
    path = f"toy:{task}"
    return {"data": {"path": path, "size": size}, "evaluate": {"data": {"path": path, "split": "heldout", "size": 256}}}


def supervised(job, start, task, lr=1e-3, steps=150, **options):
    """A supervised stage that starts from the model of stage ``start``."""
    learner = {"lr": lr, "warmup_steps": 10, "schedule": "linear"}
    common = {"num_steps": steps, "batch_size": 32, "max_length": 128, "learner": learner, "log": {"every": 50}}
    return {"job": job, "model": {"path": f"stage:{start}"}, **data(task), **common, **options}


def pipeline(folder, stages):
    """Runs the stages; returns the manifest's results of each."""
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump({"job": "pipeline", "stages": stages}, sort_keys=False))
    run_job(file, folder / "run", timeout=3500)
    return json.loads((folder / "run" / "manifest.json").read_text())["results"]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Run directory of the quickstart's pre-training and fine-tuning, and their results."""
    folder = tmp_path_factory.mktemp("start")
    stages = yaml.safe_load((ROOT / "jobs" / "quickstart.yaml").read_text())["stages"]
    return folder / "run", pipeline(folder, {name: stages[name] for name in ("pretrain", "sft")})


@pytest.fixture(scope="module")
def results(start, tmp_path_factory):
    """Results of all supervised stages, by name."""
    base, folder = start[0], tmp_path_factory.mktemp("supervised")
    rows = [(row, side) for row in toy.generate("reviews/pairs", "train", 3000, 0) for side in ("chosen", "rejected")]
    judged = [
        {
            "prompt": r["prompt"],
            "completion": r[side],
            "sentence": r["prompt"] + r[side],
            "label": int(side == "chosen"),
        }
        for r, side in rows
    ]
    (folder / "judged.jsonl").write_text("\n".join(map(json.dumps, judged[:-512])))
    (folder / "heldout.jsonl").write_text("\n".join(map(json.dumps, judged[-512:])))
    job_keys = {
        "data": {"path": str(folder / "judged.jsonl")},
        "evaluate": {"data": {"path": str(folder / "heldout.jsonl")}},
    }
    encoder = {"tokenizer": "toy", "init": BERT}
    measures = {
        "masked": supervised("pretrain", "", "reviews/text", steps=400, objective="masked", model=encoder),
        "classify": supervised("classify", "masked", "reviews/labels", steps=400),
        "tag": supervised("tag", "masked", "reviews/tags"),
        "qa": supervised("qa", "masked", "reviews/questions", steps=600, stride=16),
        "pairwise": supervised("reward", "pretrain", "reviews/pairs"),
        "labelled": supervised("reward", "pretrain", "reviews/pairs", lr=4e-4, steps=800, objective="labelled", **job_keys),
    }  # fmt: skip
    for name, objective in PREFERENCES.items():
        measures[name] = supervised("dpo", "sft", "reviews/pairs", lr=3e-4, steps=100, objective=objective)
    measures["kto"] |= job_keys
    for stage in measures.values():
        origin = stage["model"].get("path", "").removeprefix("stage:")
        if origin in ("pretrain", "sft"):
            stage["model"] = {"path": str(base / origin / "model")}
    return pipeline(folder, measures)


def test_language_models_come_close_to_the_worlds_entropy(start):
    measures = start[1]
    assert measures["pretrain"]["evaluate/perplexity"] < 3.0
    assert measures["sft"]["evaluate/perplexity"] < 3.0


# Spans: a third is the right kind of word, whichever part was asked for; finding that part again is not learnt in thousands of
# steps, nor in a plain loop around transformers' own head (LOG.md).
@pytest.mark.parametrize(
    ("stage", "measure", "least"),
    [
        ("masked", "evaluate/masked/accuracy", 0.5), ("classify", "evaluate/f1_macro", 0.8), ("tag", "evaluate/f1_macro", 0.9),
        ("qa", "evaluate/f1", 0.3), ("pairwise", "evaluate/reward/accuracy", 0.8), ("labelled", "evaluate/reward/accuracy", 0.65),
        *[(name, "evaluate/preference/accuracy", 0.6 if name == "kto" else 0.7) for name in PREFERENCES],
    ],
)  # fmt: skip
def test_held_out_values(results, stage, measure, least):
    assert results[stage][measure] > least, results[stage]


@pytest.fixture(scope="module")
def improved(start, tmp_path_factory):
    """Results of every RL algorithm, and of the fine-tuned model against one that was fine-tuned further on its best answers."""
    sft = {"path": str(start[0] / "sft" / "model")}
    improvements = {
        name: {
            "job": "ppo", "model": sft, "algorithm": {"type": name}, "data": PROMPTS, "rewards": SENTIMENT, "num_steps": 15,
            "rollout": {"prompts_per_step": 64 if name in ("ppo", "reinforce", "reinforce_plus_plus", "remax") else 16,
                        "chunk_prompts": 16, "max_new_tokens": 24},
            "learner": {"lr": 3e-4}, "evaluate": {"data": HELDOUT}, "log": {"progress": False},
            **({"critic": {"lr": 1e-3}} if name == "ppo" else {}),
        }
        for name in ALGORITHMS
    }  # fmt: skip
    rollout = {"chunk_prompts": 32, "max_new_tokens": 24}
    improvements["sample"] = {
        "job": "sample", "model": sft, "data": {**PROMPTS, "size": 512}, "rollout": rollout, "rewards": SENTIMENT,
        "samples": 8, "keep": "best",
    }  # fmt: skip
    improvements["kept"] = supervised(
        "sft", "", "", steps=60, model=sft, data={"path": "stage:sample/kept.jsonl"}, evaluate={}
    )
    improvements["judged"] = {
        "job": "evaluate", "model": {"path": "stage:kept"}, "against": sft["path"], "data": HELDOUT, "rollout": rollout,
        "rewards": SENTIMENT, "greedy": False,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("improved")
    results = pipeline(folder, improvements)
    return results | {"judged": json.loads((folder / "run" / "judged" / "evaluation.json").read_text())}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_held_out_reward_rises(improved, name):
    assert improved[name]["reward"]["low"] > 0, improved[name]


def test_fine_tuning_on_the_best_of_eight_raises_the_reward(improved):
    assert improved["judged"]["wins"]["sentiment"]["low"] > 0.5, improved["judged"]
