"""More training examples: texts with words deleted or swapped.

Wei & Zou 2019, arXiv 1901.11196.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .examples import Row, Rows


def delete(words: Sequence[str], share: float, draw: np.random.Generator) -> list[str]:
    """Deletes each word with probability ``share``; one word remains at least."""
    remaining = [w for w, u in zip(words, draw.random(len(words)), strict=True) if u >= share]
    return remaining or [words[int(draw.integers(len(words)))]]


def swap(words: Sequence[str], share: float, draw: np.random.Generator) -> list[str]:
    """Two words change places, ``share`` of the number of words times, once at least."""
    swapped = list(words)
    for _ in range(max(1, int(share * len(swapped)))):
        i, j = draw.integers(len(swapped), size=2)
        swapped[i], swapped[j] = swapped[j], swapped[i]
    return swapped


OPERATIONS: dict[str, Callable[[Sequence[str], float, np.random.Generator], list[str]]] = {
    "delete": delete,
    "swap": swap,
}


def change_rows(rows: Rows, operation: str, share: float, seed: Sequence[int]) -> Rows:
    """The rows with column text (or sentence) changed, words joined by blanks; ``seed`` and a row's place decide how."""
    generators = (np.random.default_rng([*seed, i]) for i in range(len(rows)))
    return rows.changed(_change_row(row, operation, share, draw) for row, draw in zip(rows, generators, strict=True))


def _change_row(row: Row, operation: str, share: float, draw: np.random.Generator) -> Row:
    column = "text" if "text" in row else "sentence"
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        return row  # whoever reads it says what is wrong with it
    return {**row, column: " ".join(OPERATIONS[operation](value.split(), share, draw))}
