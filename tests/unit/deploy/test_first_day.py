"""tests/gpu/run.sh: what it says without a GPU, why a step is skipped, and that its jobs are valid."""

import os
import subprocess
import sys

import pytest

from rlhf_ray.config import parse
from tests.gpu import first_day
from tests.helpers import ROOT


def run_script(*arguments):
    """The script without a GPU."""
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [ROOT / "tests/gpu/run.sh", *arguments], capture_output=True, text=True, env=environment, check=False
    )


def test_without_a_gpu_it_says_so_in_one_sentence():
    done = run_script("--only", "memory", "oom")
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["there is no GPU here (torch sees no CUDA device), and every step needs one"]


def test_an_unknown_step_is_an_error_that_names_the_steps():
    done = run_script("--only", "everything")
    assert done.returncode == 2
    assert all(step.name in done.stderr for step in first_day.STEPS)


def test_a_step_for_more_gpus_is_skipped_with_the_reason(tmp_path):
    step = next(step for step in first_day.STEPS if step.name == "step_7b")
    entry = first_day.run_step(step, tmp_path / "step", num_gpus=1)
    assert entry["skipped"] == "it needs 8 GPUs and there are 1"
    assert not (tmp_path / "step").exists()


def test_a_step_that_fails_has_its_error_and_seconds(tmp_path):
    step = first_day.Step(
        name="fails", about="a module that does not exist", run=first_day.run_module("no_such_module")
    )
    entry = first_day.run_step(step, tmp_path, num_gpus=1)
    assert "no_such_module" in entry["failed"]
    assert entry["seconds"] > 0
    assert "No module named no_such_module" in (tmp_path / "output.txt").read_text()


@pytest.mark.parametrize(
    "sections", [first_day.MEMORY, first_day.out_of_memory(16), first_day.TENSOR_PARALLEL, first_day.LARGE]
)
def test_the_jobs_are_valid(sections):
    for engine in ("transformers", "vllm"):
        if "engine" not in sections.get("rollout", {}) or engine == "vllm":
            parse(first_day.job_of("0.5B", engine, **sections), "job")
