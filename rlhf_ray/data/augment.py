"""Texts changed a little, as more training examples of their class: words deleted or swapped (Wei & Zou 2019, arXiv 1901.11196)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .examples import Row, Rows


def delete(words: Sequence[str], share: float, draw: np.random.Generator) -> list[str]:
    """Each word goes with probability ``share``; one stays at least."""
    kept = [w for w, u in zip(words, draw.random(len(words)), strict=True) if u >= share]
    return kept or [words[int(draw.integers(len(words)))]]


def swap(words: Sequence[str], share: float, draw: np.random.Generator) -> list[str]:
    """Two words change places, ``share`` of the number of words times, once at least."""
    found = list(words)
    for _ in range(max(1, int(share * len(found)))):
        i, j = draw.integers(len(found), size=2)
        found[i], found[j] = found[j], found[i]
    return found


OPERATIONS: dict[str, Callable[[Sequence[str], float, np.random.Generator], list[str]]] = {
    "delete": delete,
    "swap": swap,
}


def change_rows(rows: Rows, operation: str, share: float, seed: Sequence[int]) -> Rows:
    """The rows with column text (or sentence) changed, words joined by blanks; ``seed`` and a row's place decide how."""
    return rows.changed(
        _row(row, operation, share, np.random.default_rng([*seed, i])) for i, row in enumerate(rows)
    )  # fmt: skip


def _row(row: Row, operation: str, share: float, draw: np.random.Generator) -> Row:
    column = "text" if "text" in row else "sentence"
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        return row  # whoever reads it says what is wrong with it
    return {**row, column: " ".join(OPERATIONS[operation](value.split(), share, draw))}
