"""Scatter plots as an SVG that any browser shows, without a library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 300, 220, 52, 40, 14
COLOURS = {"finished": "#1f77b4", "stopped": "#b8c4d0", "over": "#d62728", "chosen": "#2ca02c"}


@dataclass(frozen=True)
class Dot:
    """A point, its kind (a key of COLOURS) and the words that appear when the mouse is on it. ``x`` may be a word."""

    x: Any
    y: float
    kind: str
    words: str


@dataclass(frozen=True)
class Panel:
    """Dots over an axis; ``limit`` is a dashed line at an x, ``line`` joins points."""

    x: str
    y: str
    dots: Sequence[Dot]
    log: bool = False
    limit: float | None = None
    line: Sequence[tuple[float, float]] = field(default_factory=list)


class Axis:
    """Maps numbers, or words in the order they come, to pixels from ``start`` to ``end``."""

    def __init__(self, values: Sequence[Any], log: bool, start: float, end: float) -> None:
        self.words = None if all(_is_number(v) for v in values) else list(dict.fromkeys(map(str, values)))
        self.log = log and self.words is None
        numbers = [self._number(v) for v in values] or [0.0]
        low, high = min(numbers), max(numbers)
        room = 0.06 * (high - low) or 0.5
        self.low, self.high, self.start, self.end = low - room, high + room, start, end

    def _number(self, value: Any) -> float:
        if self.words is not None:
            return float(self.words.index(str(value)))
        return math.log10(value) if self.log else float(value)

    def place(self, value: Any) -> float:
        """The pixel of a value."""
        return self.start + (self._number(value) - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Pixels and labels."""
        if self.words is not None:
            return [(self.place(word), word) for word in self.words]
        at = [self.low + (self.high - self.low) * (i + 0.5) / 4 for i in range(4)]
        step = (self.end - self.start) / (self.high - self.low)
        return [(self.start + (v - self.low) * step, f"{10**v if self.log else v:.2g}") for v in at]


def picture(panels: Sequence[Panel]) -> str:
    """The panels side by side, three in a row, with a legend."""
    columns = min(3, len(panels))
    height = HEIGHT * math.ceil(len(panels) / 3) + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * columns}" height="{height}" font-family="sans-serif" font-size="10">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for i, panel in enumerate(panels):
        parts.append(f'<g transform="translate({WIDTH * (i % 3)},{HEIGHT * (i // 3)})">{_panel(panel)}</g>')
    for i, (kind, colour) in enumerate(COLOURS.items()):
        x, y = LEFT + 72 * i, height - 10
        words = {"over": "over budget", "stopped": "stopped early"}.get(kind, kind)
        parts.append(f'<circle cx="{x}" cy="{y - 3}" r="4" fill="{colour}"/><text x="{x + 7}" y="{y}">{words}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel) -> str:
    right, floor = WIDTH - 12, HEIGHT - BOTTOM
    across = [dot.x for dot in panel.dots] + ([panel.limit] if panel.limit is not None else [])
    x = Axis(across, panel.log, LEFT, right)
    y = Axis([dot.y for dot in panel.dots if math.isfinite(dot.y)], False, floor, TOP)
    parts = [f'<path d="M{LEFT},{TOP}V{floor}H{right}" fill="none" stroke="#333"/>']
    parts += [
        f'<text x="{at:.0f}" y="{floor + 14}" text-anchor="middle">{escape(label)}</text>' for at, label in x.ticks()
    ]
    parts += [
        f'<text x="{LEFT - 4}" y="{at + 3:.0f}" text-anchor="end">{escape(label)}</text>' for at, label in y.ticks()
    ]
    parts.append(f'<text x="{(LEFT + right) / 2:.0f}" y="{floor + 30}" text-anchor="middle">{escape(panel.x)}</text>')
    parts.append(f'<text x="{LEFT}" y="{TOP - 4}">{escape(panel.y)}</text>')
    if panel.limit is not None:
        at = x.place(panel.limit)
        parts.append(f'<path d="M{at:.1f},{TOP}V{floor}" stroke="#d62728" stroke-dasharray="4 3"/>')
    if len(panel.line) > 1:
        points = " ".join(f"{x.place(a):.1f},{y.place(b):.1f}" for a, b in panel.line)
        parts.append(f'<polyline points="{points}" fill="none" stroke="#999"/>')
    for dot in panel.dots:
        if math.isfinite(dot.y) and not (isinstance(dot.x, float) and math.isnan(dot.x)):
            spot = f'cx="{x.place(dot.x):.1f}" cy="{y.place(dot.y):.1f}" r="4"'
            parts.append(
                f'<circle {spot} fill="{COLOURS.get(dot.kind, "#999")}"><title>{escape(dot.words)}</title></circle>'
            )
    return "".join(parts)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
