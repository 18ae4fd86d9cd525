"""Examples: rows of a file or of the offline world, as dicts, with errors that name file and line.

Columns are TRL's: ``text`` (pretrain); ``prompt`` and ``completion``, or ``messages`` (sft); ``prompt``, ``chosen`` and
``rejected`` (reward, pairs); ``text`` or ``sentence`` and ``label`` (reward, labelled); ``prompt`` and whatever the
rewards want beside it (ppo). A prompt, completion or side may be a string or a list of {role, content} messages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ..config import BadInput
from . import toy

Row = dict[str, Any]
TOY = "toy:"


class DataError(BadInput):
    """Data that cannot be used: one sentence with place and remedy."""


def load(
    path: str, *, split: str = "train", size: int | None = None, seed: int = 0, columns: dict[str, str] | None = None
) -> list[Row]:
    """The rows of ``path`` ('toy:TASK' or a file), at most ``size`` of them, columns renamed {old: new}. Raises DataError."""
    if path.startswith(TOY):
        try:
            return toy.generate(path.removeprefix(TOY), split, size or 1000, seed)
        except ValueError as error:
            raise DataError(f"data.path: {error}") from None
    rows = read(path)[:size]
    for old in columns or {}:
        require(rows, [old], path)
    return [{(columns or {}).get(k, k): v for k, v in row.items()} for row in rows] if columns else rows


def read(path: str | Path) -> list[Row]:
    """All rows of a JSONL, JSON, Parquet, CSV or TSV file, or of a saved Hugging Face dataset. Raises DataError."""
    path = Path(path).expanduser()
    if path.is_dir():
        rows = _saved_dataset(path)
    elif not path.is_file():
        raise DataError(f"{path}: no such file; data.path is a file, a saved dataset, or toy:TASK")
    elif path.suffix not in READERS:
        raise DataError(f"{path}: unknown kind of file; known are {', '.join(READERS)}")
    else:
        rows = READERS[path.suffix](path)
    if not rows:
        raise DataError(f"{path}: there are no rows in it")
    return rows


def require(rows: Sequence[Row], columns: Sequence[str], where: str) -> None:
    """Raises DataError unless every row has these columns, none of them null."""
    for line, row in enumerate(rows, 1):
        for column in columns:
            if row.get(column) is None:
                raise DataError(
                    f"{where}:{line}: no column '{column}' (it has {', '.join(row)}); rename one with data.columns={{old: {column}}}"
                )


def text_of(row: Row, column: str, where: str) -> str:
    """A column that must be a string with something in it. Raises DataError."""
    value = row.get(column)
    if not isinstance(value, str):
        raise DataError(f"{where}: column '{column}' is {type(value).__name__}, expected a string")
    if not value.strip():
        raise DataError(f"{where}: column '{column}' is empty; remove the row")
    return value


def rendered(value: Any, tokenizer: Any, where: str, *, prompt: bool) -> str:
    """A string as it is; a list of messages through the chat template (ready for the assistant, if ``prompt``)."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(m, dict) and {"role", "content"} <= set(m) for m in value):
        raise DataError(f"{where}: neither a string nor a list of messages with role and content")
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"{where}: a conversation, and the tokenizer has no chat template; use an instruct model or plain strings"
        )
    return tokenizer.apply_chat_template(value, tokenize=False, add_generation_prompt=prompt)


def _jsonl(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}:{number}: not JSON ({error.msg} at column {error.colno}); mend or remove the line"
            ) from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: a {type(row).__name__}, expected an object with columns")
        rows.append(row)
    return rows


def _json(path: Path) -> list[Row]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: not JSON ({error.msg}); for one object a line use the ending .jsonl"
        ) from None
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise DataError(f"{path}: expected a list of objects")
    return rows


def _delimited(delimiter: str) -> Callable[[Path], list[Row]]:
    def reader(path: Path) -> list[Row]:
        quoting = pa.csv.ParseOptions(
            delimiter=delimiter, quote_char='"' if delimiter == "," else False, newlines_in_values=delimiter == ","
        )
        try:
            return pa.csv.read_csv(path, parse_options=quoting).to_pylist()
        except pa.ArrowInvalid as error:
            raise DataError(f"{path}: {str(error).splitlines()[0]}") from None

    return reader


def _parquet(path: Path) -> list[Row]:
    try:
        return pa.parquet.read_table(path).to_pylist()
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from None


def _saved_dataset(path: Path) -> list[Row]:
    """The Arrow files of datasets' save_to_disk, read without that library."""
    files = sorted(path.glob("*.arrow"))
    if not files:
        raise DataError(f"{path}: a directory without .arrow files; give a file, or a dataset saved with save_to_disk")
    return [row for f in files for row in pa.ipc.open_stream(f).read_all().to_pylist()]


READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
}
