"""A first day on GPUs, step by step: each step's seconds and figures go to one JSON file.

A step that needs more GPUs than there are, or a package that is missing, is skipped with the reason. A step that fails
does not stop the next; the exit code is then 1. Without a GPU it is 2.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from rlhf_ray.run.reader import read_metrics
from tests.gpu.watched import FILE
from tests.helpers import ROOT, SHARE

OOM_BOUND_S = 15.0  # in which the command must name exhausted memory
SHAPES = {
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
             "num_key_value_heads": 2},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4},
}  # fmt: skip
SUMMARY = ("tokens_per_second", "mfu", "time/", "sync/bytes")  # parts of the names of metrics that a job's figures have


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of the day. ``run`` gets its folder and returns figures; it raises if the step fails."""

    name: str
    about: str
    run: Callable[[Path], dict]
    num_gpus: int = 1
    package: str | None = None


def run_module(name, *arguments):
    """A step that runs a Python module, and takes the files that it writes to build/benchmarks as figures."""

    def run(folder):
        began = time.time()
        with (folder / "output.txt").open("w") as output:
            subprocess.run([sys.executable, "-m", name, *arguments], cwd=ROOT, stdout=output, stderr=output, check=True)
        files = [file for file in (ROOT / "build/benchmarks").glob("*.json") if file.stat().st_mtime >= began]
        return {file.stem: json.loads(file.read_text())["rows"] for file in files}

    return run


def job_of(shape, engine, **sections):
    """A GRPO job of a random model with a vocabulary of 152,064, in bfloat16."""
    init = {
        "model_type": "llama",
        "vocab_size": 152_064,
        "max_position_embeddings": 16_384,
        "tie_word_embeddings": False,
    }
    job = {
        "job": "ppo",
        "cluster": {"device": "cuda"},
        "model": {"init": {**init, **SHAPES[shape]}, "tokenizer": "toy", "dtype": "bfloat16"},
        "data": {"path": "toy:reviews/prompts", "size": 512, "max_prompt_tokens": 32},
        "algorithm": {"type": "grpo", "group_size": 8},
        "rollout": {"prompts_per_step": 16, "max_new_tokens": 512, "engine": {"type": engine, "dtype": "bfloat16"}},
        "rewards": {"terms": [SHARE]},
        "learner": {"offload": "all", "micro_batch_tokens": 8192},
        "num_steps": 3,
    }
    return {key: {**value, **sections.get(key, {})} if isinstance(value, dict) else sections.get(key, value)
            for key, value in job.items()}  # fmt: skip


def run_job(folder, job):
    """Runs a job with watched workers. Returns its exit code, its lines of output with their times, and of memory."""
    folder.mkdir(parents=True, exist_ok=True)
    file, memory = folder / "job.yaml", folder / "memory.jsonl"
    file.write_text(yaml.safe_dump(job, sort_keys=False))
    command = [sys.executable, "-m", "tests.gpu.watched", "train", str(file), f"run.dir={folder / 'run'}"]
    environment = {**os.environ, FILE: str(memory), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True, bufsize=1
    )
    lines = [(time.time(), line) for line in process.stdout]
    (folder / "output.txt").write_text("".join(line for _, line in lines))
    memory_lines = [json.loads(line) for line in memory.read_text().splitlines()] if memory.is_file() else []
    return process.wait(), lines, memory_lines


def summary(folder):
    """The means of a job's timings and rates, without its first step."""
    steps = list(read_metrics(folder / "run"))[1:]
    names = sorted({name for step in steps for name in step if any(part in name for part in SUMMARY)})
    return {name: sum(step.get(name, 0.0) for step in steps) / len(steps) for name in names}


def completed_job(shape, **sections):
    """A step that is a job which must end well; by vLLM if it is installed."""

    def run(folder):
        code, lines, memory = run_job(folder, job_of(shape, best_engine(), **sections))
        if code:
            raise RuntimeError(f"exit code {code}: {''.join(line for _, line in lines)[-2000:]}")
        fullest = {f"{m['role']}.{m['call']}": 0.0 for m in memory}
        for line in memory:
            name = f"{line['role']}.{line['call']}"
            fullest[name] = max(fullest[name], line["used_gib"])
        return {"engine": best_engine(), **summary(folder), "used_gib_after": fullest, "memory": memory}

    return run


MEMORY: dict = {}  # as job_of has it
TENSOR_PARALLEL = {
    "cluster": {"colocate": False},
    "rollout": {"engine": {"type": "vllm", "tensor_parallel_size": 2, "dtype": "bfloat16"}},
}
LARGE = {
    "learner": {"num_workers": 8, "zero_stage": 3, "micro_batch_tokens": 16_384},
    "rollout": {"num_workers": 8, "prompts_per_step": 512, "max_new_tokens": 8192},
}


def out_of_memory(samples):
    """The sections of a job whose micro-batch has all answers to ``samples`` prompts, of up to 2,048 tokens each."""
    return {
        "rollout": {"prompts_per_step": samples, "max_new_tokens": 2048},
        "learner": {"micro_batch_tokens": samples * 8 * 2048},
        "num_steps": 1,
    }


def named_out_of_memory(folder):
    """Doubles the micro-batch until a rank is out of memory; the seconds until the command says so."""
    samples = 16
    for _ in range(8):
        code, lines, memory = run_job(folder / str(samples), job_of("0.5B", best_engine(), **out_of_memory(samples)))
        raised = [m["time"] for m in memory if m["error"] == "OutOfMemory"]
        named = [at for at, line in lines if "out of memory" in line.lower()]
        if raised and named:
            seconds = max(0.0, named[0] - raised[0])
            if seconds > OOM_BOUND_S:
                raise RuntimeError(f"exhausted memory was named after {seconds:.0f} s")
            return {"micro_batch_tokens": samples * 8 * 2048, "seconds_until_named": seconds, "exit_code": code}
        if code:
            raise RuntimeError(
                f"exit code {code} without a word of memory: {''.join(line for _, line in lines)[-2000:]}"
            )
        samples *= 2
    raise RuntimeError("the largest micro-batch fitted; take a larger one")


def best_engine():
    """vLLM if it is installed."""
    return "vllm" if importlib.util.find_spec("vllm") else "transformers"


CUDA = ("--device", "cuda", "--dtype", "bfloat16")
STEPS = [
    Step(name="kernels", about="what needs a CUDA device", run=run_module("pytest", "-m", "gpu", "tests/gpu")),
    Step(
        name="zero3",
        about="four jobs at ZeRO-3 by nccl, vocabulary of 152,064, uneven lengths",
        run=run_module("pytest", "-m", "integration or rehearsal", "tests/integration/test_large_vocabulary.py"),
        num_gpus=2,
    ),
    Step(name="memory", about="0.5B colocated: memory at each phase change", run=completed_job("0.5B", **MEMORY)),
    Step(name="oom", about="exhausted memory is named within 15 s", run=named_out_of_memory),
    Step(
        name="learner",
        about="MFU of a learner rank",
        run=run_module(
            "tests.benchmarks.learner_vs_peak", *CUDA, "--shape", "0.5B", "1.5B", "--vocab", "32000", "--count", "256",
            "--longest", "1008", "--budget", "32768", "--rounds", "3",
        ),
    ),
    Step(
        name="rollout",
        about="tokens per second of the embedded engine",
        run=run_module(
            "tests.benchmarks.rollout_vs_generate", *CUDA, "--shape", "0.5B", "--count", "512", "--batch", "256",
            "--longest", "256", "--rounds", "2",
        ),
    ),
    Step(
        name="sync",
        about="seconds of a verified weight sync",
        run=run_module("tests.benchmarks.weight_sync", "--device", "cuda", "--layers", "24", "--rounds", "6"),
    ),
    Step(
        name="trl",
        about="a GRPO step against TRL 1.16 in build/peers",
        run=run_module(
            "tests.benchmarks.grpo_vs_trl", "--large", "--vocab", "32000", "--precision", "bfloat16", "--rounds", "3"
        ),
    ),
    Step(
        name="tensor_parallel",
        about="0.5B, vLLM on two GPUs, a learner rank on a third: seconds of a sync",
        run=completed_job("0.5B", **TENSOR_PARALLEL),
        num_gpus=3,
        package="vllm",
    ),
    Step(
        name="step_7b",
        about="7B GRPO on eight GPUs, 512 prompts x 8, answers of 8,192 tokens",
        run=completed_job("7B", **LARGE),
        num_gpus=8,
        package="vllm",
    ),
    Step(
        name="faults",
        about="killed workers and ranks that fail",
        run=run_module("pytest", "tests/integration/test_faults.py", "tests/integration/test_errors.py"),
        num_gpus=2,
    ),
]  # fmt: skip


def why_skipped(step, num_gpus):
    """The reason for which a step cannot run here, or None."""
    if step.num_gpus > num_gpus:
        return f"it needs {step.num_gpus} GPUs and there are {num_gpus}"
    if step.package and importlib.util.find_spec(step.package) is None:
        return f"{step.package} is not installed"
    return None


def run_step(step, folder, num_gpus):
    """Runs a step; its entry of the JSON file."""
    reason = why_skipped(step, num_gpus)
    if reason:
        print(f"== {step.name}: skipped: {reason}", flush=True)
        return {"name": step.name, "about": step.about, "skipped": reason}
    print(f"== {step.name}: {step.about}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    began, entry = time.perf_counter(), {"name": step.name, "about": step.about}
    try:
        entry["figures"] = step.run(folder)
    except (RuntimeError, subprocess.CalledProcessError) as error:
        entry["failed"] = f"{error}; its output is in {folder}"
        print(f"!! failed: {entry['failed']}", flush=True)
    entry["seconds"] = time.perf_counter() - began
    print(f"== {entry['seconds']:.0f} s", flush=True)
    return entry


def parse_arguments():
    """The steps to run, all unless some are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [step.name for step in STEPS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="these steps (default: all)")
    parser.add_argument("--out", type=Path, default=ROOT / "build/gpu", help="folder of first_day.json and of the jobs")
    return parser.parse_args()


def main():
    args = parse_arguments()
    num_gpus = torch.cuda.device_count()
    if not num_gpus:
        print("there is no GPU here (torch sees no CUDA device), and every step needs one", file=sys.stderr)
        return 2
    hardware = {"gpu": torch.cuda.get_device_name(), "num_gpus": num_gpus, "torch": torch.__version__}
    args.out.mkdir(parents=True, exist_ok=True)
    entries = []
    for step in STEPS:
        if step.name in args.only:
            entries.append(run_step(step, args.out / step.name, num_gpus))
            (args.out / "first_day.json").write_text(json.dumps({"hardware": hardware, "steps": entries}, indent=1))
    print(f"written: {args.out / 'first_day.json'}")
    return int(any("failed" in entry for entry in entries))


if __name__ == "__main__":
    sys.exit(main())
