"""Scatter plots of a search's trials (extra: plots)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COLOURS = {"finished": "#1f77b4", "stopped": "#b8c4d0", "over": "#d62728", "chosen": "#2ca02c"}
WORDS = {"over": "over budget", "stopped": "stopped early"}


@dataclass(frozen=True)
class Dot:
    """A point and its kind (a key of COLOURS). ``x`` may be a word."""

    x: Any
    y: float
    kind: str


@dataclass(frozen=True)
class Panel:
    """Dots over an axis; ``limit`` is a dashed line at an x, ``line`` joins points."""

    x: str
    y: str
    dots: Sequence[Dot]
    log: bool = False
    limit: float | None = None
    line: Sequence[tuple[float, float]] = field(default_factory=list)


def picture(panels: Sequence[Panel], file: Path) -> None:
    """Writes the panels side by side, three in a row, with a legend. Raises ImportError without matplotlib."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    with rc_context({"svg.hashsalt": "trials"}):  # the same trials are the same file
        figure = Figure(figsize=(3.6 * columns, 2.8 * rows + 0.3), layout="constrained")
        for i, panel in enumerate(panels):
            _draw(figure.add_subplot(rows, columns, i + 1), panel)
        shown = {
            label: handle
            for axes in figure.axes
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(file, metadata={"Date": None})


def _draw(axes: Any, panel: Panel) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    if panel.limit is not None:
        axes.axvline(panel.limit, color=COLOURS["over"], linestyle="--", linewidth=1)
    if len(panel.line) > 1:
        axes.plot(*zip(*panel.line, strict=True), color="#999999", linewidth=1, zorder=0)
    words = not all(isinstance(dot.x, int | float) and not isinstance(dot.x, bool) for dot in panel.dots)
    for kind, colour in COLOURS.items():
        dots = [dot for dot in panel.dots if dot.kind == kind and math.isfinite(dot.y)]
        if dots:
            across = [str(dot.x) if words else dot.x for dot in dots]
            axes.scatter(across, [dot.y for dot in dots], color=colour, label=WORDS.get(kind, kind), s=24)
    if panel.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel=panel.x, ylabel=panel.y)
    axes.spines[["top", "right"]].set_visible(False)
