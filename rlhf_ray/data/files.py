"""Reading files row by row: each reader yields (line or row number, row) and holds no more than a piece of the file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ..config import BadInput

Row = dict[str, Any]
Numbered = Iterator[tuple[int, Row]]

CSV_BLOCK = 1 << 22  # bytes that are parsed together (Arrow reads up to 32 ahead); the first decide the columns' types
SLICE = 1000  # rows that become Python objects together
HUB = "hf:"


class DataError(BadInput):
    """Data that cannot be used: one sentence with place and remedy."""


@dataclass(frozen=True)
class Reader:
    """How a kind of file is read; ``lined``: its numbers are lines; ``whole``: it is held in memory."""

    rows: Callable[[Path], Numbered]
    lined: bool = False
    whole: bool = False


def reader(path: Path) -> Reader:
    """The reader of a path that is there."""
    return Reader(_saved_dataset) if path.is_dir() else READERS[path.suffix]


def find(path: str, option: str) -> None:
    """Raises DataError unless this is a file of a known kind, a directory, or a hub's dataset that could be asked for."""
    file = Path(path).expanduser()
    if path.startswith(HUB):
        _datasets(path)
    elif file.is_dir():
        return
    elif not file.is_file():
        raise DataError(f"{file}: no such file; {option}.path is a file, a saved dataset, {HUB}NAME, or toy:TASK")
    elif file.suffix not in READERS:
        raise DataError(f"{file}: unknown kind of file; known are {', '.join(READERS)}")


def lines(path: Path) -> Iterator[str]:
    """The lines of a text file without their ends. Raises DataError that names the line where it is not UTF-8.

    Only a line feed ends a line: U+2028, which JSON allows in text, does not.
    """
    with path.open("rb") as opened:
        for number, line in enumerate(opened, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}:{number}: not UTF-8 (byte 0x{error.object[error.start]:02x}); save the file with that encoding"
                ) from None


def parallel(source: Path, target: Path) -> Numbered:
    """Columns source and target, line by line. Raises DataError where one file has more lines."""
    for number, (one, other) in enumerate(zip_longest(lines(source), lines(target)), 1):
        if one is None or other is None:
            sizes = [sum(1 for _ in lines(file)) for file in (source, target)]
            raise DataError(
                f"{source} has {sizes[0]} lines and {target} {sizes[1]}; line i of one must translate line i of the other"
            )
        yield number, {"source": one, "target": other}


def hub(path: str) -> Numbered:
    """The rows of 'hf:NAME' or 'hf:NAME:SPLIT', which the datasets library keeps on disk."""
    name, _, split = path.removeprefix(HUB).partition(":")
    try:
        rows = _datasets(path).load_dataset(name, split=split or "train")
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise DataError(
            f"{path}: cannot be had ({type(error).__name__}: {first}); see that the name and the split (hf:NAME:SPLIT) are "
            "right and the hub can be reached, or give a file"
        ) from None
    yield from enumerate(rows, 1)


def _datasets(path: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{path}: needs the datasets library; pip install 'rlhf-ray[datasets]', or give a file"
        ) from None
    return datasets


def _jsonl(path: Path) -> Numbered:
    for number, line in enumerate(lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}:{number}: not JSON ({error.msg} at column {error.colno}); correct or remove the line"
            ) from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: a {type(row).__name__}, expected an object with columns")
        yield number, row


def _json(path: Path) -> Numbered:
    try:
        rows = json.loads("\n".join(lines(path)))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: not JSON ({error.msg}); for one object a line use the ending .jsonl"
        ) from None
    if isinstance(rows, dict) and isinstance(rows.get("data"), list):
        try:
            rows = list(_squad(rows["data"]))
        except (KeyError, TypeError) as error:
            kind = f"{type(error).__name__}: {error}"
            raise DataError(f"{path}: has 'data' as SQuAD does, but not all of its form ({kind})") from None
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise DataError(f"{path}: expected a list of objects, or SQuAD's form")
    yield from enumerate(rows, 1)


def _squad(articles: list[Any]) -> Iterable[Row]:
    """SQuAD as published: a row for each question."""
    for article in articles:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                entries = asked.get("answers", [])
                answers = {key: [a[key] for a in entries] for key in ("text", "answer_start")}
                names = {"id": asked.get("id"), "title": article.get("title")}
                yield {"question": asked["question"], "context": paragraph["context"], "answers": answers, **names}


def _text(path: Path) -> Numbered:
    """A row with column text for each line that is not blank."""
    yield from ((number, {"text": line}) for number, line in enumerate(lines(path), 1) if line.strip())


def _delimited(delimiter: str) -> Callable[[Path], Numbered]:
    quoting = pa.csv.ParseOptions(
        delimiter=delimiter, quote_char='"' if delimiter == "," else False, newlines_in_values=delimiter == ","
    )

    def batches(path: Path) -> Iterator[pa.RecordBatch]:
        with pa.csv.open_csv(path, pa.csv.ReadOptions(block_size=CSV_BLOCK), quoting) as opened:
            for batch in opened:
                if any(pa.types.is_binary(kind) for kind in batch.schema.types):  # Arrow's name for what is not UTF-8
                    raise pa.ArrowInvalid("not UTF-8")
                yield batch

    def rows(path: Path) -> Numbered:
        try:
            yield from _numbered(batches(path))
        except pa.ArrowInvalid as error:
            for _ in lines(path):  # names the line where the encoding is what is wrong
                pass
            raise DataError(f"{path}: {str(error).splitlines()[0]}") from None

    return rows


def _parquet(path: Path) -> Numbered:
    try:
        with pa.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as opened:  # pages, not row groups
            yield from _numbered(opened.iter_batches(SLICE))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from None


def _arrow(path: Path) -> Numbered:
    """An Arrow file (Feather version 2), or a stream as datasets writes it."""
    try:
        with pa.memory_map(str(path)) as source:
            try:
                opened = pa.ipc.open_file(source)
                batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
            except pa.ArrowInvalid:
                source.seek(0)
                batches = iter(pa.ipc.open_stream(source))
            yield from _numbered(batches)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not an Arrow file ({str(error).splitlines()[0]})") from None


def _saved_dataset(path: Path) -> Numbered:
    """The Arrow files of datasets' save_to_disk, read without that library."""
    files = sorted(path.glob("*.arrow"))
    if not files:
        raise DataError(f"{path}: a directory without .arrow files; give a file, or a dataset saved with save_to_disk")
    yield from enumerate((row for file in files for _, row in _arrow(file)), 1)


def _numbered(batches: Iterable[pa.RecordBatch]) -> Numbered:
    """Rows with their number, as Python objects a slice at a time."""
    parts = (batch.slice(start, SLICE) for batch in batches for start in range(0, len(batch), SLICE))
    yield from enumerate((row for part in parts for row in part.to_pylist()), 1)


READERS: dict[str, Reader] = {
    ".jsonl": Reader(_jsonl, lined=True),
    ".json": Reader(_json, whole=True),
    ".parquet": Reader(_parquet),
    ".csv": Reader(_delimited(",")),
    ".tsv": Reader(_delimited("\t")),
    ".txt": Reader(_text, lined=True),
    ".arrow": Reader(_arrow),
    ".feather": Reader(_arrow),
}
