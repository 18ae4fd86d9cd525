"""Two sides measured in turns in one run: these machines are noisy, so what counts is the ratio of medians."""

import json
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

from rlhf_ray.learner.mfu import peak_flops
from rlhf_ray.models.load import DTYPES


def seconds(call):
    """Wall-clock seconds of one call, and what it returned."""
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def compare(ours, theirs, rounds):
    """Calls both in turns after one warm-up each. Returns medians, spread and the ratio theirs / ours of their seconds."""
    ours(), theirs()
    times = [(seconds(ours)[0], seconds(theirs)[0]) for _ in range(rounds)]
    return summary(*zip(*times, strict=True))


def summary(mine, other):
    """Medians and ranges of two lists of seconds measured in turns, and the ratio theirs / ours with the range of the turns'."""
    ratios = [b / a for a, b in zip(mine, other, strict=True)]
    return {
        "ours_s": statistics.median(mine),
        "theirs_s": statistics.median(other),
        "ours_range_s": [min(mine), max(mine)],
        "theirs_range_s": [min(other), max(other)],
        "ratio": statistics.median(other) / statistics.median(mine),
        "ratio_range": [min(ratios), max(ratios)],
    }


def in_turns(sides, rounds):
    """``rounds`` steps of each side, one side after the other; all were made ready before.

    Returns the seconds and the answers, each as {name of the side: list}.
    """
    spent = {side.name: [] for side in sides}
    answers = {side.name: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            took, answer = side.step()
            spent[side.name].append(took)
            answers[side.name].append(answer)
    return spent, answers


def precisions(device):
    """float32, and bfloat16 where this device multiplies faster in it: without its instructions a CPU is ten times slower."""
    whole, half = (peak_flops(torch.device(device), dtype) for dtype in DTYPES.values())
    return ["float32", "bfloat16"] if half > whole else ["float32"]


def report(name, rows, out="build/benchmarks"):
    """Prints a table of the rows (dicts with 'case') and writes them as JSON with hardware, versions and load."""
    print(f"\n{name}")
    print(f"{'case':48} {'ours s':>9} {'theirs s':>9} {'ratio':>7}  turns")
    for row in rows:
        turns = "{:.2f} to {:.2f}".format(*row["ratio_range"]) if "ratio_range" in row else ""
        print(f"{row['case']:48} {row['ours_s']:9.3f} {row['theirs_s']:9.3f} {row['ratio']:7.2f}  {turns}")
    machine = {
        "machine": platform.machine(), "processor": processor(), "cores": os.cpu_count(), "load": os.getloadavg(),
        "threads": torch.get_num_threads(), "python": platform.python_version(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {p: version(p) for p in ("torch", "transformers", "ray", "deepspeed", "accelerate")},
        "command": sys.argv,
    }  # fmt: skip
    path = Path(out) / f"{name.split(':')[0].replace(' ', '_')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"hardware": machine, "rows": rows}, indent=1))
    print(f"written: {path}", flush=True)


def processor():
    """Name of the processor, where Linux says it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
