"""Scatter plots of a search's trials as an SVG file (extra: plots)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COLOURS = {"finished": "#1f77b4", "stopped": "#b8c4d0", "over": "#d62728", "chosen": "#2ca02c"}
LABELS = {"over": "over budget", "stopped": "stopped early"}


@dataclass(frozen=True)
class Point:
    """A trial's point: a number or a category on the x axis, a number on the y axis, a kind (a key of COLOURS)."""

    x: Any
    y: float
    kind: str


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Points over two labelled axes.

    ``log`` makes the x axis logarithmic, ``limit`` draws a dashed line at that x, ``line`` joins (x, y) points.
    """

    x_label: str
    y_label: str
    points: Sequence[Point]
    log: bool = False
    limit: float | None = None
    line: Sequence[tuple[float, float]] = field(default_factory=list)


def write_scatter(panels: Sequence[Panel], file: Path) -> None:
    """Writes the panels, three in a row, with one legend. Raises ImportError without matplotlib."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    with rc_context({"svg.hashsalt": "trials"}):  # the same trials give the same bytes
        figure = Figure(figsize=(3.6 * columns, 2.8 * rows + 0.3), layout="constrained")
        for i, panel in enumerate(panels):
            _draw_panel(figure.add_subplot(rows, columns, i + 1), panel)
        handles = {
            label: handle
            for axes in figure.axes
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(file, metadata={"Date": None})


def _draw_panel(axes: Any, panel: Panel) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    if panel.limit is not None:
        axes.axvline(panel.limit, color=COLOURS["over"], linestyle="--", linewidth=1)
    if len(panel.line) > 1:
        axes.plot(*zip(*panel.line, strict=True), color="#999999", linewidth=1, zorder=0)
    numeric = all(isinstance(point.x, int | float) and not isinstance(point.x, bool) for point in panel.points)
    for kind, colour in COLOURS.items():
        points = [point for point in panel.points if point.kind == kind and math.isfinite(point.y)]
        if points:
            x = [point.x if numeric else str(point.x) for point in points]
            axes.scatter(x, [point.y for point in points], color=colour, label=LABELS.get(kind, kind), s=24)
    if panel.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel=panel.x_label, ylabel=panel.y_label)
    axes.spines[["top", "right"]].set_visible(False)
