"""What is in a dataset, before anything is trained on it: sizes, lengths, duplicates, empty texts, labels, leakage."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from .examples import Row, Rows

TEXTS = (
    *("text", "sentence", "prompt", "completion", "source", "target"),
    *("chosen", "rejected", "question", "context", "messages"),
)
SHOWN = 12


def lines(rows: Rows, tokenizer: Any, limits: dict[str, int]) -> Iterator[str]:
    """Sentences on the rows; ``limits`` are the most tokens that the job takes, of columns or of a whole ('row')."""
    columns = Counter(name for row in rows for name in row)
    parts = ", ".join(f"{n}" + ("" if c == len(rows) else f" (in {c})") for n, c in columns.items())
    yield f"{rows.source}: {len(rows)} rows with {parts}"
    sizes_of: dict[str, np.ndarray] = {}
    for name in [n for n in TEXTS if n in columns]:
        texts = [_text(row.get(name)) for row in rows]
        sizes = np.array([len(tokenizer(t, add_special_tokens=False)["input_ids"]) if t else 0 for t in texts])
        sizes_of[name] = sizes
        yield f"  {name}: {_sizes(sizes)} tokens" + _over(sizes, limits.get(name))
        empty = [i for i, t in enumerate(texts) if not t.strip()]
        if empty:
            yield f"  {name}: empty in {len(empty)} rows, the first at {rows.place(empty[0])}"
    if sizes_of:
        total = _sequence(sizes_of)
        yield f"  a whole sequence: {_sizes(total)} tokens" + _over(total, limits.get("row"))
    seen = Counter(_key(row) for row in rows)
    if len(seen) < len(rows):
        yield f"  duplicates: {len(rows) - len(seen)} rows are copies of others"
    if "label" in columns:
        yield f"  labels: {_balance(Counter(str(row.get('label')) for row in rows))}"
    if "tags" in columns:
        yield f"  tags: {_balance(Counter(str(tag) for row in rows for tag in row.get('tags') or ()))}"
    if "chosen" in columns and "rejected" in columns:
        same = [
            i for i, row in enumerate(rows) if row.get("chosen") is not None and row["chosen"] == row.get("rejected")
        ]
        if same:
            yield f"  pairs: {len(same)} have equal sides, the first at {rows.place(same[0])}"


def _sequence(sizes: dict[str, np.ndarray]) -> np.ndarray:
    """Tokens of what a row becomes, its end token included: a pair becomes two sequences, of which the longer counts."""
    sides = [sizes[n] for n in ("chosen", "rejected") if n in sizes]
    rest = [s for n, s in sizes.items() if n not in ("chosen", "rejected")]
    return np.sum([*rest, np.max(sides, 0)] if sides else rest, 0) + 1


def _balance(counts: Counter[str]) -> str:
    total, num_hidden = counts.total(), len(counts) - SHOWN
    shares = ", ".join(f"{n} {c} ({c / max(1, total):.0%})" for n, c in counts.most_common(SHOWN))
    return shares + (f" and {num_hidden} more" if num_hidden > 0 else "")


def leakage(train: Rows, heldout: Rows) -> str:
    """How many held-out rows are in the training data too, whole or by their first text."""
    keys, first_texts = {_key(row) for row in train}, {_first(row) for row in train}
    same = sum(_key(row) in keys for row in heldout)
    first = sum(_first(row) in first_texts for row in heldout)
    return (
        f"leakage: {same} of {len(heldout)} held-out rows are training rows, {first} have a training row's first text"
    )


def _key(row: Row) -> str:
    return json.dumps(row, sort_keys=True, default=str)


def _first(row: Row) -> str:
    return next((" ".join(_text(row[n]).split()).lower() for n in TEXTS if n in row), "")


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(str(m.get("content", "")) if isinstance(m, dict) else str(m) for m in value)
    return "" if value is None else str(value)


def _sizes(sizes: np.ndarray) -> str:
    low, middle, high, most = (int(x) for x in np.percentile(sizes, [5, 50, 95, 100]))
    return f"median {middle}, 5 to 95 % {low} to {high}, most {most}"


def _over(sizes: np.ndarray, limit: int | None) -> str:
    return "" if limit is None or not (sizes > limit).any() else f"; {int((sizes > limit).sum())} rows exceed {limit}"
