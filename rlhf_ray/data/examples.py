"""Rows of a file or of the toy dataset, as dicts, with errors that name file and line.

Columns are TRL's: ``text`` (pretrain); ``prompt`` and ``completion``, or ``messages`` (sft); ``source`` and ``target``
(seq2seq); ``prompt``, ``chosen``, ``rejected`` and, if wanted, ``margin`` (reward, pairs); ``text`` or ``sentence`` and
``label`` (reward, labelled); ``prompt`` and whatever the rewards read as well (ppo). A prompt, completion or side may be a
string or a list of {role, content} messages.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..config import DataConfig
from ..config.data import Form, Source
from ..run.events import notice
from ..toy import world as toy
from . import files, redact
from .encode import check_text
from .files import DataError, Numbered, Row
from .sampler import EQUAL, Shares

TOY = "toy:"
BLOCK = 1000  # rows that are held together where a dataset is not held whole


class Rows(list[Row]):
    """Rows that know where they come from, for messages, and how often each is drawn.

    ``source`` is the file, ``option`` the config key. ``lines`` are the rows' lines if the kind of file has lines;
    otherwise ``numbers`` are the rows' numbers if not all rows of the file are here.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        source: str,
        lines: Sequence[int] | None = None,
        option: str = "data",
        numbers: Sequence[int] | None = None,
        shares: Shares = EQUAL,
    ) -> None:
        super().__init__(rows)
        self.source, self.lines, self.option, self.numbers, self.shares = source, lines, option, numbers, shares

    def changed(self, rows: Iterable[Row]) -> Rows:
        """As many other rows, at the same places and drawn as often."""
        return Rows(rows, self.source, self.lines, self.option, self.numbers, self.shares)

    def place(self, index: int) -> str:
        """'file:line', or 'file, row N' where lines are not known."""
        if self.lines is None:
            return f"{self.source}, row {index + 1 if self.numbers is None else self.numbers[index]}"
        return f"{self.source}:{self.lines[index]}"

    def require(self, index: int, *columns: str) -> None:
        """Raises DataError unless the row has these columns, none of them null."""
        row = self[index]
        for column in columns:
            if row.get(column) is None:
                raise DataError(
                    f"{self.place(index)}: no column '{column}' (it has {', '.join(row)}); "
                    f"rename one with {self.option}.columns={{old: {column}}}"
                )

    def text(self, index: int, column: str) -> str:
        """A column that is a string with something in it. Raises DataError."""
        self.require(index, column)
        return check_text(self[index][column], column, self.place(index))

    def number(self, index: int, column: str) -> float:
        """A column that is a finite number. Raises DataError."""
        self.require(index, column)
        return check_number(self[index][column], column, self.place(index))


class Mixed(Rows):
    """The rows of several parts, one after the other, each with its own file and key."""

    def __init__(self, parts: Sequence[Rows], option: str, shares: Shares = EQUAL) -> None:
        source = " + ".join(part.source for part in parts)
        super().__init__((row for part in parts for row in part), source, option=option, shares=shares)
        self.parts, self.ends = parts, np.cumsum([len(p) for p in parts]).tolist()

    def changed(self, rows: Iterable[Row]) -> Rows:
        """As many other rows, at the same places of their parts."""
        remaining = iter(rows)
        parts = [part.changed(islice(remaining, len(part))) for part in self.parts]
        return Mixed(parts, self.option, self.shares)

    def place(self, index: int) -> str:
        """As the part has it."""
        part, within = self._part(index)
        return part.place(within)

    def require(self, index: int, *columns: str) -> None:
        """As the part does."""
        part, within = self._part(index)
        part.require(within, *columns)

    def _part(self, index: int) -> tuple[Rows, int]:
        at = bisect.bisect_right(self.ends, index)
        return self.parts[at], index - (self.ends[at - 1] if at else 0)


def load(config: DataConfig, option: str) -> Rows:
    """The rows that the section ``option`` ('data', 'evaluate.data', ...) asks for, of all its parts. Raises DataError."""
    parts = [_load_source(source, key) for key, source in named(config, option)]
    logits = np.concatenate([chances(part, source) for part, source in zip(parts, config.sources, strict=True)])
    drawn = shares(config, option, np.cumsum([len(p) for p in parts]).tolist(), logits)
    if config.mix:
        return Mixed(parts, option, drawn)
    (rows,) = parts
    return Rows(rows, rows.source, rows.lines, option, rows.numbers, drawn)


def named(config: DataConfig, option: str) -> list[tuple[str, Source]]:
    """The sources of a section, each with its key."""
    return [(f"{option}.mix.{i}" if config.mix else option, source) for i, source in enumerate(config.sources)]


def chances(rows: Rows, config: Source) -> np.ndarray:
    """(rows,): logarithms of how often a source's rows are drawn, up to a constant. Raises DataError for what is no number."""
    if config.sampling is None:
        return np.zeros(len(rows))
    by = config.sampling.by
    return np.array([rows.number(i, by) for i in range(len(rows))]) / config.sampling.temperature


def shares(config: DataConfig, option: str, ends: Sequence[int], logits: np.ndarray) -> Shares:
    """How often training draws the rows of the sources, which end at these rows and have these ``chances``."""
    weighed = None
    if any(source.sampling for source in config.sources):
        weighed = np.concatenate([np.exp(part - part.max()) for part in np.split(logits, ends[:-1])])
    if not config.mix:
        return Shares(chances=weighed)
    weights, names = tuple(part.weight for part in config.mix), tuple(key for key, _ in named(config, option))
    return Shares(tuple(ends), weights, names, weighed)


def _load_source(config: Source, option: str) -> Rows:
    """All rows of one source."""
    found = list(blocks(config, option))
    lines = [n for block in found for n in block.lines or ()]
    numbers = [n for block in found for n in block.numbers or ()]
    return Rows((row for block in found for row in block), found[0].source, lines or None, option, numbers)


def blocks(config: Source, option: str) -> Iterator[Rows]:
    """The rows of one source in bounded pieces, columns renamed, made and redacted, rows left out. Raises DataError."""
    numbered, lined = _open_source(config, option)
    counts: Counter[str] = Counter()
    done, left, numbered = 0, 0, islice(numbered, config.size)
    while part := list(islice(numbered, BLOCK)):
        numbers = [n for n, _ in part]
        places = (numbers, option, None) if lined else (None, option, numbers)
        rows = Rows((row for _, row in part), _name(config), *places)
        kept = _rows_above(_change_rows(rows, config, counts), config)
        done += len(part)
        left += len(kept)
        if kept:
            yield kept
    if not done:
        raise DataError(f"{_name(config)}: there are no rows in it")
    if config.above:
        bars = ", ".join(f"{column} above {bar:g}" for column, bar in config.above.items())
        if not left:
            raise DataError(f"{_name(config)}: none of {done} rows has {bars}; lower {option}.above")
        notice(f"{option}: {left} of {done} rows have {bars}, the others are left out")
    if config.redact:
        notice(f"{option}: redacted {', '.join(f'{n} {kind}' for kind, n in counts.items()) or 'nothing'}")


def _name(config: Source) -> str:
    return config.path if config.path.startswith((TOY, files.HUB)) else str(Path(config.path).expanduser())


def _open_source(config: Source, option: str) -> tuple[Numbered, bool]:
    """The rows of a source as its file has them, numbered, and whether the numbers are lines."""
    if config.path.startswith(TOY):
        return enumerate(_generate(config, config.size or 1000, option), 1), False
    if config.path.startswith(files.HUB):
        return files.hub(config.path), False
    find(config, option)
    path = Path(config.path).expanduser()
    if config.parallel is not None:
        return files.parallel(path, Path(config.parallel).expanduser()), True
    kind = files.reader(path)
    return kind.rows(path), kind.lined


def _change_rows(rows: Rows, config: Source, counts: Counter[str]) -> Rows:
    """The rows with columns renamed, made of others, and redacted (``counts``: how often)."""
    new = config.columns
    if new:
        for index in range(len(rows)):
            rows.require(index, *new)
        rows = rows.changed({new.get(k, k): v for k, v in row.items()} for row in rows)
    if config.formats:
        rows = rows.changed(_format_row(row, config.formats, rows.place(i)) for i, row in enumerate(rows))
    return rows.changed(redact.row(row, config.redact, counts) for row in rows) if config.redact else rows


def _rows_above(rows: Rows, config: Source) -> Rows:
    """The rows that are above every bar."""
    if not config.above:
        return rows
    indices = [i for i in range(len(rows)) if all(rows.number(i, c) > bar for c, bar in config.above.items())]
    lines, numbers = ([labels[i] for i in indices] if labels else None for labels in (rows.lines, rows.numbers))
    return Rows((rows[i] for i in indices), rows.source, lines, rows.option, numbers)


def check_number(value: Any, name: str, place: str) -> float:
    """``value`` as a finite number. Raises DataError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{place}: {name} is {value!r}, expected a number")
    return float(value)


def _format_row(row: Row, formats: Mapping[str, Form], where: str) -> Row:
    """The row with columns made of others: {'prompt': '{source} =>'}, or with messages made of them."""

    def filled(form: Form) -> Any:
        if isinstance(form, str):
            return form.format(**row)
        return [{key: text.format(**row) for key, text in message.items()} for message in form]

    try:
        return {**row, **{name: filled(form) for name, form in formats.items()}}
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"{where}: formats does not fit the row ({type(error).__name__}: {error}), which has {', '.join(row)}"
        ) from None


def find(config: Source, option: str) -> None:
    """Raises DataError unless a source's file or task is there; reads no rows."""
    if config.path.startswith(TOY):
        _generate(config, 1, option)
    elif config.parallel is not None:
        for file in (config.path, config.parallel):
            if not Path(file).expanduser().is_file():
                raise DataError(f"{file}: no such file; {option}.path and {option}.parallel are two text files")
    else:
        files.find(config.path, option)


def _generate(config: Source, size: int, option: str) -> list[Row]:
    task, _, split = config.path.removeprefix(TOY).partition(":")
    try:
        return toy.generate(task, split or config.split, size, config.seed)
    except ValueError as error:
        raise DataError(f"{option}.path: {error}") from None


def to_table(rows: Rows, indices: Sequence[int], required: Collection[str] = ()) -> pa.Table:
    """The rows of these indices with every column that any of them has, and example_id, their index.

    A column that Arrow cannot hold (values of several types) is left out with a notice. Raises DataError if it is one of
    the ``required`` ones.
    """
    names = dict.fromkeys(name for i in indices for name in rows[i])
    columns = {}
    for name in names:
        if name == "example_id":
            continue
        try:
            columns[name] = _column(rows, indices, name)
        except DataError as error:
            if name in required:
                raise
            notice(
                f"{rows.option}: column '{name}' is left out, since no reward names it and it has no one type; {error}"
            )
    return pa.table({**columns, "example_id": pa.array(indices, pa.int64())})


def _column(rows: Rows, indices: Sequence[int], name: str) -> pa.Array:
    values = [rows[i].get(name) for i in indices]
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError) as error:
        kinds: dict[str, str] = {}
        for i, value in zip(indices, values, strict=True):
            if value is not None:
                kinds.setdefault(type(value).__name__, rows.place(i))
        places = ", ".join(f"{kind} at {place}" for kind, place in kinds.items())
        raise DataError(
            f"column '{name}' is {places}: {str(error).splitlines()[0]}; give all its values one type"
        ) from None
