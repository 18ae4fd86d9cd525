"""Jobs of a random model with a real vocabulary at ZeRO-3 on two ranks, whose sequences have uneven lengths.

From a vocabulary of 131,072 on the head makes chunks of 128 positions, so ranks have different numbers of chunks.
"""

import json

import numpy as np
import pytest
import yaml

from rlhf_ray.run.reader import read_metrics
from tests.helpers import SHARE, TINY, run_job

pytestmark = pytest.mark.integration
MODEL = {
    "tokenizer": "toy",
    "init": {
        **TINY,
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "max_position_embeddings": 1024,
        "vocab_size": 152_064,
        "tie_word_embeddings": False,
    },
}
LEARNER = {"num_workers": 2, "zero_stage": 3, "micro_batch_tokens": 700, "lr": 1e-3}


def supervised(job, file, **more):
    """A job of two steps that reads two rows a step."""
    return {
        "job": job,
        "model": MODEL,
        "data": {"path": str(file)},
        "num_steps": 2,
        "batch_size": 2,
        "max_length": 640,
        "learner": LEARNER,
        **more,
    }


def write_rows(file, rows):
    """The rows as a JSON Lines file."""
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def jobs(folder):
    """SFT, PPO, a reward model and DPO. Answers have 600 words or 20, so that each rank has its own number of chunks."""
    long, short = " ".join(["the", "film"] * 300), " ".join(["the", "film"] * 10)
    answers = write_rows(
        folder / "answers.jsonl", [{"prompt": "the film", "completion": text} for text in (long, short) * 2]
    )
    pairs = write_rows(
        folder / "pairs.jsonl",
        [
            {"prompt": "the film", "chosen": text, "rejected": f"{text[:-5]} was"}
            for text in (long[: len(long) // 2], short) * 2
        ],
    )
    ppo = {
        "job": "ppo",
        "model": MODEL,
        "data": {"path": "toy:reviews/prompts", "size": 12, "max_prompt_tokens": 32},
        "algorithm": {"type": "ppo", "kl": {"coef": 0.05}},
        # three answers a mini-batch: two on one rank, one on the other
        "rollout": {"prompts_per_step": 6, "chunk_prompts": 6, "max_new_tokens": 200},
        "rewards": {"terms": [SHARE]},
        "critic": {"lr": 1e-3},
        "learner": LEARNER,
        "num_steps": 2,
    }
    return {
        "sft": supervised("sft", answers),
        "ppo": ppo,
        "reward": supervised("reward", pairs),
        "dpo": supervised("dpo", pairs, objective={"type": "dpo"}),
    }


def run_stages(folder, names):
    """Runs these jobs as one pipeline, and checks that each has made its steps."""
    stages = jobs(folder)
    job = {"job": "pipeline", "cluster": {"num_threads": 1, "deadline_s": 60}}
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump({**job, "stages": {name: stages[name] for name in names}}, sort_keys=False))
    run_job(file, folder / "run", timeout=580)
    for name in names:
        steps = read_metrics(folder / "run" / name)
        assert len(steps) == 2, name
        losses = [value for step in steps for key, value in step.items() if "loss" in key]
        assert losses, name
        assert np.isfinite(losses).all(), name


@pytest.mark.rehearsal
def test_fine_tuning_and_ppo_at_zero_3(tmp_path):
    run_stages(tmp_path, ["sft", "ppo"])


@pytest.mark.rehearsal
def test_a_reward_model_and_dpo_at_zero_3(tmp_path):
    run_stages(tmp_path, ["reward", "dpo"])
