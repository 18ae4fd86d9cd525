"""Tiny jobs, and a way to run them in processes of their own, as a user would."""

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path

from rlhf_ray.run.metric_names import describe
from rlhf_ray.run.reader import read_metrics

ROOT = Path(__file__).parents[1]
PRESETS = {path.stem: path for path in sorted((ROOT / "jobs" / "presets").glob("*.yaml"))}  # planned, never run
JOBS = {path.stem: path for path in sorted((ROOT / "jobs").rglob("*.yaml")) if path.stem not in PRESETS}
"""Job files by name, whatever folder they are in."""
TINY = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 128, "tie_word_embeddings": True,
}  # fmt: skip
T5 = {"model_type": "t5", "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}


SHARE = {
    "name": "share",
    "type": "rule",
    "rule": "word_share",
    "options": {"words": ["great", "lovely", "warm", "the", "was", "style"]},
}


def rl_job(**changes):
    """A PPO job of a random tiny model on the toy dataset, scored by rules."""
    job = {
        "job": "ppo",
        "run": {"seed": 1},
        "cluster": {"num_threads": 1, "deadline_s": 120},
        "model": {"init": TINY, "tokenizer": "toy"},
        "data": {"path": "toy:reviews/prompts", "size": 64, "max_prompt_tokens": 32},
        "algorithm": {"type": "ppo"},
        "rollout": {"prompts_per_step": 8, "chunk_prompts": 4, "max_new_tokens": 8},
        "rewards": {"terms": [SHARE]},
        "learner": {"lr": 1e-3, "micro_batch_tokens": 256},
        "critic": {"lr": 1e-3},
        "num_steps": 2,
    }
    return {**job, **changes}


def command(file, run_dir, *overrides):
    """The command line of a job."""
    return [sys.executable, "-m", "rlhf_ray", "train", str(file), f"run.dir={run_dir}", *overrides]


def run_job(file, run_dir, *overrides, expect=0, timeout=300):
    """Runs a job file in a process of its own; returns the finished process."""
    line = command(file, run_dir, *overrides)
    done = subprocess.run(line, capture_output=True, text=True, timeout=timeout, cwd=ROOT, check=False)
    assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def metrics_of(run_dir):
    """The lines of metrics.jsonl without what a clock measures."""
    timed = (
        "time/",
        "mfu",
        "tokens_per_second",
        "idle_share",
        "bytes_per_second",
        "verify_share",
        "usage/",
        "engine_seconds",
        "run_id",
    )
    return [{k: v for k, v in line.items() if not any(t in k for t in timed)} for line in read_metrics(Path(run_dir))]


def undescribed_metrics(run_dir):
    """Names in a run's metrics.jsonl that the glossary lacks."""
    names = {name for line in read_metrics(Path(run_dir)) for name in line} - {"step", "run_id"}
    entries = {name: describe(name) for name in names}
    results_only = "evaluate/{term}"  # of job: evaluate, which has no metrics.jsonl; it would fit any held-out name
    return sorted(name for name, entry in entries.items() if entry is None or entry.name == results_only)


def startup_parts(run_dir):
    """The parts of a run's start that its log times, up to its first step."""
    lines = [json.loads(line) for line in (Path(run_dir) / "log.jsonl").read_text().splitlines()]
    timed = [re.fullmatch(r"start-up: (.*) took \d+\.\d s", line["message"]) for line in lines if line["step"] <= 1]
    return list(dict.fromkeys(match[1] for match in timed if match))


def weights_of(run_dir):
    """The bytes of the final model's weights."""
    return (Path(run_dir) / "model" / "model.safetensors").read_bytes()


def end_actor(actor):
    """Kills an actor and waits until it is gone: a kill takes a moment, in which the actor may still reply."""
    import ray
    from ray.exceptions import RayActorError

    ray.kill(actor)
    with contextlib.suppress(RayActorError):
        while True:
            ray.get(actor.__ray_ready__.remote())
