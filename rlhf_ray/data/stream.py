"""A dataset that is larger than memory: tokenised block by block into files, which its Batch then maps.

So order, shares and resuming are those of a dataset that is held whole: every position still means one example of all of them.
In memory are a block of rows, and a few numbers an example (length, place in the epoch's order).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..batch import COLUMNS, Batch
from ..config import DataConfig
from ..run.atomic import replace_directory
from . import examples, files
from .batches import NothingFits, Prepared
from .examples import DataError, Rows
from .sampler import Shares

PREFIX = "tokens-"  # of the directories, of which there is one for each dataset of a run


class Stream:
    """The rows that a section asks for, read only to be tokenised. Raises DataError for a file that can only be read whole."""

    def __init__(self, config: DataConfig, option: str, folder: Path) -> None:
        self.config, self.option, self.folder = config, option, folder
        self.index: dict[str, Any] = {}
        self.logits = np.zeros(0)
        for path in _paths(config):
            if path.suffix in files.READERS and files.READERS[path.suffix].whole:
                raise DataError(
                    f"{path}: is one JSON value, which is read whole; write an object a line (.jsonl) to stream it"
                )

    def prepared(self, make: Callable[[Rows], Prepared], key: str) -> Prepared:
        """What ``make`` gives for all rows, block by block; kept in the folder while ``key`` and the files are the same."""
        directory = self.folder / self._name(key)
        if not directory.is_dir():
            for old in self.folder.glob(f"{PREFIX}*"):
                shutil.rmtree(old)
            with replace_directory(directory) as part:
                part.mkdir(parents=True)
                self._write(part, make)
        self.index = json.loads((directory / "index.json").read_text())
        self.logits = np.load(directory / "chances.npy", "r")
        return Prepared(_mapped(directory, self.index["widths"]), self.index["dropped"])

    def __len__(self) -> int:
        return int(self.index["ends"][-1])

    @property
    def shares(self) -> Shares:
        """How often training draws the rows; known once they are prepared."""
        return examples.shares(self.config, self.option, self.index["ends"], self.logits)

    def _name(self, key: str) -> str:
        known = [p.stat() for p in _paths(self.config) if p.exists()]
        found = [key, self.config.model_dump_json(), [[s.st_size, s.st_mtime_ns] for s in known]]
        return PREFIX + hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]

    def _write(self, directory: Path, make: Callable[[Rows], Prepared]) -> None:
        """A file for each column, the Batches of the blocks end to end, and the index."""
        rows, groups, dropped, ends, widths, logits = 0, 0, 0, [], {}, []
        weighed = any(source.sampling for source in self.config.sources)
        with contextlib.ExitStack() as stack:
            opened: dict[str, Any] = {}
            for option, source in examples.named(self.config, self.option):
                for block in examples.blocks(source, option):
                    for made in _made(block, make):
                        batch = made.batch.replace(
                            example_id=made.batch.example_id + rows, group=made.batch.group + groups
                        )
                        groups = int(batch.group[-1]) + 1
                        for name in batch.columns():
                            array = getattr(batch, name)
                            widths[name] = array.shape[1] if array.ndim == 2 else 0
                            if name not in opened:
                                opened[name] = stack.enter_context((directory / name).open("wb"))
                            array.tofile(opened[name])
                        dropped += made.dropped
                    rows += len(block)
                    if weighed:
                        logits.append(examples.chances(block, source))
                ends.append(rows)
        if not widths:
            raise NothingFits(f"{self.option}: every example is longer than max_length; raise it")
        np.save(directory / "chances.npy", np.concatenate([*logits, np.zeros(0)]))
        (directory / "index.json").write_text(json.dumps({"ends": ends, "dropped": dropped, "widths": widths}))


def _made(block: Rows, make: Callable[[Rows], Prepared]) -> Iterator[Prepared]:
    """The block prepared, if anything of it fits."""
    with contextlib.suppress(NothingFits):
        yield make(block)


def _mapped(directory: Path, widths: dict[str, int]) -> Batch:
    columns = {}
    for name, width in widths.items():
        flat = np.memmap(directory / name, COLUMNS[name].dtype, "r")
        columns[name] = flat.reshape(-1, width) if width else flat
    return Batch(**columns)


def _paths(config: DataConfig) -> list[Path]:
    named = [p for source in config.sources for p in (source.path, source.parallel) if p is not None]
    return [Path(p).expanduser() for p in named]
