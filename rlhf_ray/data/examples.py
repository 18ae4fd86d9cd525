"""Examples: rows of a file or of the offline world, as dicts, with errors that name file and line.

Columns are TRL's: ``text`` (pretrain); ``prompt`` and ``completion``, or ``messages`` (sft); ``source`` and ``target``
(seq2seq); ``prompt``, ``chosen``, ``rejected`` and, if wanted, ``margin`` (reward, pairs); ``text`` or ``sentence`` and
``label`` (reward, labelled); ``prompt`` and whatever the rewards want beside it (ppo). A prompt, completion or side may be a
string or a list of {role, content} messages.
"""

from __future__ import annotations

import bisect
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ..config import BadInput, DataConfig
from ..config.data import Form, Source
from . import redact, toy
from .sampler import Shares

Row = dict[str, Any]
TOY = "toy:"


class DataError(BadInput):
    """Data that cannot be used: one sentence with place and remedy."""


class Rows(list[Row]):
    """Rows that know where they come from, for messages: the file, the line where its kind has lines, the config key."""

    def __init__(
        self, rows: Iterable[Row], source: str, lines: Sequence[int] | None = None, option: str = "data"
    ) -> None:
        super().__init__(rows)
        self.source, self.lines, self.option = source, lines, option

    def changed(self, rows: Iterable[Row]) -> Rows:
        """Other rows at the same places."""
        return Rows(rows, self.source, self.lines, self.option)

    def place(self, index: int) -> str:
        """'file:line', or 'file, row N' where lines are not known."""
        return f"{self.source}, row {index + 1}" if self.lines is None else f"{self.source}:{self.lines[index]}"

    @property
    def shares(self) -> Shares:
        """How often training draws the rows: all equally often."""
        return Shares()

    def require(self, index: int, *columns: str) -> None:
        """Raises DataError unless the row has these columns, none of them null."""
        row = self[index]
        for column in columns:
            if row.get(column) is None:
                raise DataError(
                    f"{self.place(index)}: no column '{column}' (it has {', '.join(row)}); "
                    f"rename one with {self.option}.columns={{old: {column}}}"
                )


class Mixed(Rows):
    """The rows of several parts, one after the other, each with its own file and key."""

    def __init__(self, parts: Sequence[Rows], weights: Sequence[float], option: str) -> None:
        super().__init__((row for part in parts for row in part), " + ".join(p.source for p in parts), None, option)
        self.parts, self.weights = parts, tuple(weights)
        self.ends = np.cumsum([len(p) for p in parts]).tolist()

    @property
    def shares(self) -> Shares:
        """Each part as often as its weight says."""
        return Shares(tuple(self.ends), self.weights, tuple(p.option for p in self.parts))

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
    if not config.mix:
        return _loaded(config, option)
    parts = [_loaded(part, f"{option}.mix.{i}") for i, part in enumerate(config.mix)]
    return Mixed(parts, [part.weight for part in config.mix], option)


def _loaded(config: Source, option: str) -> Rows:
    """The rows of one source, columns renamed, made and redacted."""
    toys = config.path.startswith(TOY)
    rows = _generated(config, config.size or 1000, option) if toys else read(config.path, option, config.parallel)
    new = config.columns
    kept = Rows(rows[: config.size], rows.source, rows.lines, option)
    if new:
        for index in range(len(kept)):
            kept.require(index, *new)
        kept = kept.changed({new.get(k, k): v for k, v in row.items()} for row in kept)
    if config.formats:
        kept = kept.changed(_formatted(row, config.formats, kept.place(i)) for i, row in enumerate(kept))
    if config.redact:
        counts: Counter[str] = Counter()
        kept = kept.changed([redact.row(row, config.redact, counts) for row in kept])
        print(f"{option}: redacted {', '.join(f'{n} {kind}' for kind, n in counts.items()) or 'nothing'}", flush=True)
    return kept


def _formatted(row: Row, formats: Mapping[str, Form], where: str) -> Row:
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


def read(path: str | Path, option: str = "data", parallel: str | None = None) -> Rows:
    """All rows of a file (READERS), of a saved Hugging Face dataset, or of two text files with as many lines (columns
    source and target). Raises DataError."""
    path = Path(path).expanduser()
    if parallel is not None:
        return _parallel(path, Path(parallel).expanduser())
    _find(path, option)
    rows = _saved_dataset(path) if path.is_dir() else READERS[path.suffix](path)
    if not rows:
        raise DataError(f"{path}: there are no rows in it")
    return rows


def find(config: Source, option: str) -> None:
    """Raises DataError unless a source's file or task is there; reads no rows."""
    if config.path.startswith(TOY):
        _generated(config, 1, option)
    elif config.parallel is not None:
        for file in (config.path, config.parallel):
            if not Path(file).expanduser().is_file():
                raise DataError(f"{file}: no such file; {option}.path and {option}.parallel are two text files")
    else:
        _find(Path(config.path).expanduser(), option)


def _generated(config: Source, size: int, option: str) -> Rows:
    task, _, split = config.path.removeprefix(TOY).partition(":")
    try:
        rows = toy.generate(task, split or config.split, size, config.seed)
    except ValueError as error:
        raise DataError(f"{option}.path: {error}") from None
    return Rows(rows, config.path, None, option)


def _find(path: Path, option: str) -> None:
    if path.is_dir():
        return
    if not path.is_file():
        raise DataError(f"{path}: no such file; {option}.path is a file, a saved dataset, or toy:TASK")
    if path.suffix not in READERS:
        raise DataError(f"{path}: unknown kind of file; known are {', '.join(READERS)}")


def table(rows: Rows, kept: Sequence[int]) -> pa.Table:
    """The kept rows with every column that any of them has, and example_id, their index. Raises DataError: mixed types."""
    names = dict.fromkeys(name for i in kept for name in rows[i])
    columns = {name: _column(rows, kept, name) for name in names if name != "example_id"}
    return pa.table({**columns, "example_id": pa.array(kept, pa.int64())})


def _column(rows: Rows, kept: Sequence[int], name: str) -> pa.Array:
    values = [rows[i].get(name) for i in kept]
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError) as error:
        kinds: dict[str, str] = {}
        for i, value in zip(kept, values, strict=True):
            if value is not None:
                kinds.setdefault(type(value).__name__, rows.place(i))
        found = ", ".join(f"{kind} at {place}" for kind, place in kinds.items())
        raise DataError(
            f"column '{name}' is {found}: {str(error).splitlines()[0]}; give all its values one type"
        ) from None


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


def prompt_ids(prompt: Any, tokenizer: Any, where: str, then: str = "") -> list[int]:
    """Token ids of a prompt and the text ``then``; a chat template writes its special tokens itself: none are added."""
    text = rendered(prompt, tokenizer, where, prompt=True) + then
    ids: list[int] = tokenizer(text, add_special_tokens=isinstance(prompt, str))["input_ids"]
    return ids


def side_ids(text: str, tokenizer: Any, target: bool = False) -> list[int]:
    """Token ids of an encoder-decoder's source, or of its ``target``, as the tokenizer has them, with an end token in any case."""
    ids: list[int] = (tokenizer(text_target=text) if target else tokenizer(text))["input_ids"]
    return ids if tokenizer.eos_token_id in ids[-2:] else [*ids, tokenizer.eos_token_id]  # a language may come last


def completion(tokens: Any, prompt_length: int, tokenizer: Any) -> str:
    """The text past the prompt of a sequence (T,); decoded with the prompt before it, so that a leading space stays."""
    head = tokenizer.decode(tokens[:prompt_length], skip_special_tokens=True)
    whole: str = tokenizer.decode(tokens, skip_special_tokens=True)
    if whole.startswith(head):
        return whole[len(head) :]
    rest: str = tokenizer.decode(tokens[prompt_length:], skip_special_tokens=True)
    return rest


def _utf8(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 (byte 0x{data[error.start]:02x}); save the file with that encoding"
        ) from None


def _jsonl(path: Path) -> Rows:
    rows, lines = [], []
    for number, line in enumerate(
        _utf8(path).split("\n"), 1
    ):  # splitlines would cut at U+2028, which JSON allows in text
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
        lines.append(number)
    return Rows(rows, str(path), lines)


def _json(path: Path) -> Rows:
    try:
        rows = json.loads(_utf8(path))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: not JSON ({error.msg}); for one object a line use the ending .jsonl"
        ) from None
    if isinstance(rows, dict) and isinstance(rows.get("data"), list):
        try:
            return Rows(_squad(rows["data"]), str(path))
        except (KeyError, TypeError) as error:
            kind = f"{type(error).__name__}: {error}"
            raise DataError(f"{path}: has 'data' as SQuAD does, but not all of its form ({kind})") from None
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise DataError(f"{path}: expected a list of objects, or SQuAD's form")
    return Rows(rows, str(path))


def _squad(articles: list[Any]) -> Iterable[Row]:
    """SQuAD as published: a row for each question."""
    for article in articles:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                given = asked.get("answers", [])
                answers = {key: [a[key] for a in given] for key in ("text", "answer_start")}
                more = {"id": asked.get("id"), "title": article.get("title")}
                yield {"question": asked["question"], "context": paragraph["context"], "answers": answers, **more}


def _lines(path: Path) -> list[str]:
    text = _utf8(path)
    return text.removesuffix("\n").split("\n")


def _text_file(path: Path) -> Rows:
    """A row with column text for each line that is not blank."""
    numbered = [(n, line) for n, line in enumerate(_lines(path), 1) if line.strip()]
    return Rows(({"text": line} for _, line in numbered), str(path), [n for n, _ in numbered])


def _parallel(source: Path, target: Path) -> Rows:
    one, other = _lines(source), _lines(target)
    if len(one) != len(other):
        raise DataError(
            f"{source} has {len(one)} lines and {target} {len(other)}; line i of one must translate line i of the other"
        )
    rows = ({"source": s, "target": t} for s, t in zip(one, other, strict=True))
    return Rows(rows, str(source), range(1, len(one) + 1))


def _delimited(delimiter: str) -> Callable[[Path], Rows]:
    def reader(path: Path) -> Rows:
        quoting = pa.csv.ParseOptions(
            delimiter=delimiter, quote_char='"' if delimiter == "," else False, newlines_in_values=delimiter == ","
        )
        try:
            found = pa.csv.read_csv(path, parse_options=quoting)
        except pa.ArrowInvalid as error:
            raise DataError(f"{path}: {str(error).splitlines()[0]}") from None
        if any(pa.types.is_binary(kind) for kind in found.schema.types):
            _utf8(path)  # Arrow's name for text that is not UTF-8
        return Rows(found.to_pylist(), str(path))

    return reader


def _parquet(path: Path) -> Rows:
    try:
        return Rows(pa.parquet.read_table(path).to_pylist(), str(path))
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from None


def _arrow(path: Path) -> Rows:
    """An Arrow file (Feather version 2), or a stream as datasets writes it."""
    try:
        with pa.memory_map(str(path)) as source:
            try:
                return Rows(pa.ipc.open_file(source).read_all().to_pylist(), str(path))
            except pa.ArrowInvalid:
                source.seek(0)
                return Rows(pa.ipc.open_stream(source).read_all().to_pylist(), str(path))
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not an Arrow file ({str(error).splitlines()[0]})") from None


def _saved_dataset(path: Path) -> Rows:
    """The Arrow files of datasets' save_to_disk, read without that library."""
    files = sorted(path.glob("*.arrow"))
    if not files:
        raise DataError(f"{path}: a directory without .arrow files; give a file, or a dataset saved with save_to_disk")
    return Rows((row for f in files for row in pa.ipc.open_stream(f).read_all().to_pylist()), str(path))


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".txt": _text_file,
    ".arrow": _arrow,
    ".feather": _arrow,
}
