"""A dataset that is larger than memory: tokenised block by block into files, which its Batch then maps.

So order, shares and resuming are those of a dataset that is held whole: every position still means one example of all of them.
In memory are a block of rows, and a few numbers an example (length, place in the epoch's order).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..batch import COLUMNS, Batch
from ..config import DataConfig
from ..run.atomic import replace_directory
from . import examples, files
from .examples import DataError, Rows
from .prepared import TOO_LONG, NothingFits, Prepared

PREFIX = "tokens-"  # of the directories, of which there is one for each dataset of a run


class Stream:
    """The rows that a section asks for, read only to be tokenised. Raises DataError for a file that can only be read whole."""

    def __init__(self, config: DataConfig, option: str, folder: Path) -> None:
        self.config, self.option, self.folder = config, option, folder
        for path in _paths(config):
            if path.suffix in files.READERS and files.READERS[path.suffix].whole:
                raise DataError(
                    f"{path}: is one JSON value, which is read whole; write an object a line (.jsonl) to stream it"
                )

    def prepare(self, prepare_block: Callable[[Rows], Prepared], key: str) -> Prepared:
        """What ``prepare_block`` gives for all rows, block by block.

        It is kept in the folder while ``key`` and the files are the same. Raises NothingFits if no example is left.
        """
        directory = self.folder / self._name(key)
        if not directory.is_dir():
            for old in self.folder.glob(f"{PREFIX}*"):
                shutil.rmtree(old)
            with replace_directory(directory) as part:
                part.mkdir(parents=True)
                self._write(part, prepare_block)
        index = json.loads((directory / "index.json").read_text())
        logits = np.load(directory / "chances.npy", "r")
        return Prepared(
            batch=_mapped(directory, index["widths"]),
            num_rows=int(index["ends"][-1]),
            num_dropped=index["dropped"],
            shares=examples.shares(self.config, self.option, index["ends"], logits),
        )

    def _name(self, key: str) -> str:
        file_stats = [p.stat() for p in _paths(self.config) if p.exists()]
        identity = [key, self.config.model_dump_json(), [[s.st_size, s.st_mtime_ns] for s in file_stats]]
        return PREFIX + hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]

    def _write(self, directory: Path, prepare_block: Callable[[Rows], Prepared]) -> None:
        """A file for each column, the Batches of the blocks end to end, and the index."""
        num_rows, num_dropped, ends = 0, 0, []
        logits = [np.zeros(0)]
        weighed = any(source.sampling for source in self.config.sources)
        with contextlib.ExitStack() as stack:
            columns = _ColumnFiles(directory, stack)
            for option, source in examples.named(self.config, self.option):
                for block in examples.blocks(source, option):
                    try:
                        prepared = prepare_block(block)
                        columns.append(prepared.batch, num_rows)
                        num_dropped += prepared.num_dropped
                    except NothingFits:  # of this block; of all blocks is an error, below
                        num_dropped += len(block)
                    num_rows += len(block)
                    if weighed:
                        logits.append(examples.chances(block, source))
                ends.append(num_rows)
        if not columns.widths:
            raise NothingFits(f"{self.option}: {TOO_LONG}")
        np.save(directory / "chances.npy", np.concatenate(logits))
        index = {"ends": ends, "dropped": num_dropped, "widths": columns.widths}
        (directory / "index.json").write_text(json.dumps(index))


class _ColumnFiles:
    """The columns of Batches, written end to end, a file for each column."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self.directory, self.stack = directory, stack
        self.files: dict[str, Any] = {}
        self.widths: dict[str, int] = {}
        """k of columns of shape (B, k), 0 of flat ones."""
        self.num_groups = 0

    def append(self, batch: Batch, first_row: int) -> None:
        """Appends a Batch whose example 0 is row ``first_row`` of the dataset."""
        batch = batch.replace(example_id=batch.example_id + first_row, group=batch.group + self.num_groups)
        self.num_groups = int(batch.group[-1]) + 1
        for name in batch.columns():
            array = getattr(batch, name)
            self.widths[name] = array.shape[1] if array.ndim == 2 else 0
            if name not in self.files:
                self.files[name] = self.stack.enter_context((self.directory / name).open("wb"))
            array.tofile(self.files[name])


def _mapped(directory: Path, widths: dict[str, int]) -> Batch:
    columns = {}
    for name, width in widths.items():
        flat = np.memmap(directory / name, COLUMNS[name].dtype, "r")
        columns[name] = flat.reshape(-1, width) if width else flat
    return Batch(**columns)


def _paths(config: DataConfig) -> list[Path]:
    named = [p for source in config.sources for p in (source.path, source.parallel) if p is not None]
    return [Path(p).expanduser() for p in named]
