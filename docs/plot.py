"""Curves of finished runs as an SVG: python docs/plot.py OUT.svg LABEL=RUN[,RUN...] ... (extra: plots)."""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pyarrow.parquet as pq


def rewards(run):
    """Mean training reward of each step."""
    return [json.loads(line)["reward/mean"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def judged(run, part):
    """(steps, means) of a term over the held-out prompts."""
    files = sorted((run / "evaluations").glob("step-*.parquet"))
    return [int(f.stem.split("-")[1]) for f in files], [
        pq.read_table(f)[f"part/{part}"].to_numpy().mean() for f in files
    ]


def main(out, *groups):
    """A row of panels for each group: training reward, words, judge; a line for each seed."""
    figure, axes = plt.subplots(len(groups), 3, figsize=(9, 2.4 * len(groups)), squeeze=False, constrained_layout=True)
    for row, group in zip(axes, groups, strict=True):
        label, _, runs = group.partition("=")
        for run in map(Path, runs.split(",")):
            row[0].plot(rewards(run))
            for axis, part in zip(row[1:], ("words", "judge"), strict=True):
                axis.plot(*judged(run, part), marker="o", markersize=3)
        for axis, name in zip(row, ("training reward", "held-out: happy words", "held-out: unseen judge"), strict=True):
            axis.set_title(f"{label}: {name}", fontsize=9)
            axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("step", fontsize=8)
    figure.savefig(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
