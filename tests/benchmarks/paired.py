"""Two sides measured in turns in one run: these machines are noisy, so what counts is the ratio of medians."""

import json
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch


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
    """Medians, range and the ratio theirs / ours of two lists of seconds."""
    mine, other = sorted(mine), sorted(other)
    return {
        "ours_s": statistics.median(mine),
        "theirs_s": statistics.median(other),
        "ours_range_s": [mine[0], mine[-1]],
        "theirs_range_s": [other[0], other[-1]],
        "ratio": statistics.median(other) / statistics.median(mine),
    }


class Timings:
    """Seconds of several sides, measured in turns."""

    def __init__(self, seconds):
        self.seconds = seconds

    def against(self, theirs):
        """Medians, spread and ratio of our side and another, as :func:`compare` gives them."""
        return summary(self.seconds["ours"], self.seconds[theirs])


def in_turns(sides, rounds):
    """``rounds`` steps of each side, one side after the other; all were made ready before. Returns Timings and answers."""
    seconds = {side.name: [] for side in sides}
    answers = {side.name: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            spent, answer = side.step()
            seconds[side.name].append(spent)
            answers[side.name].append(answer)
    return Timings(seconds), answers


def report(name, rows, out="build/benchmarks"):
    """Prints a table of the rows (dicts with 'case') and writes them as JSON with hardware and versions."""
    print(f"\n{name}")
    print(f"{'case':40} {'ours s':>9} {'theirs s':>9} {'ratio':>7}")
    for row in rows:
        print(f"{row['case']:40} {row['ours_s']:9.3f} {row['theirs_s']:9.3f} {row['ratio']:7.2f}")
    machine = {
        "machine": platform.machine(), "cores": torch.get_num_threads(), "python": platform.python_version(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {p: version(p) for p in ("torch", "transformers", "ray", "deepspeed")}, "command": sys.argv,
    }  # fmt: skip
    path = Path(out) / f"{name.split(':')[0].replace(' ', '_')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"hardware": machine, "rows": rows}, indent=1))
    print(f"written: {path}")
