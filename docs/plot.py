"""Draws the curves of finished runs as an SVG file (extra: plots).

    python docs/plot.py OUT.svg LABEL=RUN[,RUN...] ...

Each label is a row of panels, with a line for each run: training reward, happy words, judge.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pyarrow.parquet as pq

from rlhf_ray.run.reader import evaluation_files, evaluation_step, read_metrics


def mean_rewards(run):
    """The mean training reward of each step."""
    return [row["reward/mean"] for row in read_metrics(run)]


def heldout_means(run, term):
    """(steps, means) of a reward term over the held-out prompts."""
    files = evaluation_files(run)
    return [evaluation_step(file) for file in files], [
        pq.read_table(file)[f"part/{term}"].to_numpy().mean() for file in files
    ]


def main(out, *groups):
    """Writes the file ``out``."""
    figure, axes = plt.subplots(len(groups), 3, figsize=(9, 2.4 * len(groups)), squeeze=False, constrained_layout=True)
    for row, group in zip(axes, groups, strict=True):
        label, _, runs = group.partition("=")
        for run in map(Path, runs.split(",")):
            row[0].plot(mean_rewards(run))
            for axis, term in zip(row[1:], ("words", "judge"), strict=True):
                axis.plot(*heldout_means(run, term), marker="o", markersize=3)
        for axis, name in zip(row, ("training reward", "held-out: happy words", "held-out: unseen judge"), strict=True):
            axis.set_title(f"{label}: {name}", fontsize=9)
            axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("step", fontsize=8)
    figure.savefig(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
