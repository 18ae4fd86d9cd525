"""Jobs on two raylets of four pretended GPUs each: ZeRO-3, a vocabulary of 152,064, uneven answers, killed workers.

Only the device differs from a run on eight GPUs: see pretend.py.
"""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from ray.cluster_utils import Cluster
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_ray.run.reader import read_metrics
from tests.helpers import ROOT, SHARE
from tests.integration.test_resume import wait_for

pytestmark = [pytest.mark.rehearsal, pytest.mark.timeout(1800)]
VOCABULARY, MOST_TOKENS = 152_064, 400
NUM_STEPS = 3


@pytest.fixture(scope="module")
def address():
    """The address of a Ray of two raylets with four pretended GPUs each."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ["PYTHONPATH"] = str(ROOT)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 16, "num_gpus": 4, "include_dashboard": False})
    cluster.add_node(num_cpus=16, num_gpus=4)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random Llama of one layer. 1,200 tokens end an answer, so a half has more than 90 tokens, some 300 and more."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
    )
    llama = LlamaForCausalLM(config)
    llama.generation_config.eos_token_id = list(range(100_000, 101_200))
    path = tmp_path_factory.mktemp("model")
    llama.save_pretrained(path)
    return str(path)


@pytest.fixture
def start(address, model, tmp_path):
    """start(**sections): starts a job of ZeRO-3 in a process of its own; the same sections again go on with it."""
    processes = []

    def start_job(engine, *, cluster, learner, rollout, **sections):
        job = {
            "cluster": {"address": address, "num_threads": 1, "deadline_s": 240, **cluster},
            "model": {"path": model, "tokenizer": "toy", "dtype": "float32"},
            "data": {"path": "toy:reviews/prompts", "size": 48, "max_prompt_tokens": 32},
            "rollout": {
                "chunk_prompts": 2,
                "max_new_tokens": MOST_TOKENS,
                "engine": {"type": engine, "dtype": "float32"},
                **rollout,
            },
            "rewards": {"terms": [SHARE]},
            "learner": {"zero_stage": 3, "micro_batch_tokens": 700, "lr": 1e-3, **learner},
            "checkpoint": {"every": 1},
            "num_steps": NUM_STEPS,
            **sections,
        }
        file = tmp_path / "job.yaml"
        file.write_text(yaml.safe_dump(job, sort_keys=False))
        line = [sys.executable, "-m", "tests.rehearsal.train", "train", str(file), f"run.dir={tmp_path / 'run'}"]
        process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, start_new_session=True
        )
        processes.append(process)
        return process

    yield start_job
    for process in processes:
        if process.poll() is None:
            process.kill()


@pytest.fixture(
    params=[
        "transformers",
        pytest.param(
            "vllm",
            marks=pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
        ),
    ]
)
def engine(request):
    """Each engine that is installed."""
    return request.param


def kill_in(method, process):
    """SIGKILL to the first actor that is in this method."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        assert process.poll() is None, process.communicate()[0]
        for child in psutil.Process().children(recursive=True):
            try:
                if any(f"ray::{method}" in word for word in child.cmdline()):
                    os.kill(child.pid, signal.SIGKILL)
                    return
            except psutil.NoSuchProcess:  # it has ended since
                continue
    raise AssertionError(f"no actor was in {method}")


def finish(process, expect=0):
    """The output of a process that has ended with this exit code."""
    output = process.communicate(timeout=1200)[0]
    assert process.returncode == expect, output
    return output


def check_metrics(run_dir):
    """Every step is there once, and its losses and all other numbers are finite."""
    lines = list(read_metrics(Path(run_dir)))
    assert [line["step"] for line in lines] == list(range(NUM_STEPS))
    for line in lines:
        numbers = [value for value in line.values() if isinstance(value, float)]
        assert any("loss" in name for name in line)
        assert np.isfinite(numbers).all(), line
        assert line["rollout/length_max"] > 128, "an answer must have two of the head's chunks"


def test_colocated_ppo_on_eight_ranks_survives_the_loss_of_a_rank(start, engine, timed, tmp_path):
    job = {
        "job": "ppo",
        "cluster": {"colocate": True},
        "algorithm": {"type": "ppo", "kl": {"coef": 0.05}},
        "critic": {"lr": 1e-3},
        "learner": {"num_workers": 8, "offload": "all"},
        "rollout": {"num_workers": 4, "prompts_per_step": 20},
    }
    with timed(f"colocated, {engine}: PPO, 8 ranks, 4 rollout workers: first step"):
        process = start(engine, **job)
        wait_for(tmp_path / "run" / "metrics.jsonl", 1, process)
    with timed(f"colocated, {engine}: a rank killed in an update; on from the checkpoint, to the end"):
        kill_in("PretendLearner.update", process)
        output = finish(process)
    print(output)
    assert "placement: 8 learner, 4 rollout, 1 reward on" in output
    assert "(cuda)" in output
    assert "one with 4 learner, 4 rollout, 1 reward; one with 4 learner" in output
    assert re.search(r"learner worker \d died", output)
    assert "going on from step-" in output
    check_metrics(tmp_path / "run")


def test_separate_grpo_survives_the_loss_of_a_rollout_worker_and_goes_on_after_a_stop(start, engine, timed, tmp_path):
    job = {
        "job": "ppo",
        "cluster": {"colocate": False},
        "algorithm": {"type": "grpo", "group_size": 4},
        "learner": {"num_workers": 4},
        "rollout": {"num_workers": 4, "prompts_per_step": 8, "chunk_prompts": 1},
    }
    with timed(f"4 + 4, {engine}: GRPO, 4 ranks, 4 rollout workers: first step; a rollout worker killed in it"):
        process = start(engine, **job)
        kill_in("PretendRollout.generate", process)
        wait_for(tmp_path / "run" / "metrics.jsonl", 1, process)
    with timed(f"4 + 4, {engine}: SIGTERM; checkpoint, exit code 3"):
        process.send_signal(signal.SIGTERM)
        output = finish(process, expect=3)
    print(output)
    assert re.search(r"rollout worker \d died and is replaced", output)
    with timed(f"4 + 4, {engine}: the same command again, to the end"):
        output = finish(start(engine, **job))
    print(output)
    assert "going on from step-" in output
    check_metrics(tmp_path / "run")
