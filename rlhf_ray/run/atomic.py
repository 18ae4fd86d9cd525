"""Atomic writes: a file or directory is there whole, or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yields a path next to ``path`` to write to; after the block it replaces ``path`` in one step, synced to disk.

    If the block raises, the unfinished file is removed and ``path`` stays as it was.
    """
    part = path.with_name(path.name + ".tmp")
    try:
        yield part
        sync(part)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Replaces the file's content in one step."""
    with replace_file(path) as part:
        part.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Replaces the file's content in one step by ``value`` as JSON, indented."""
    write_text(path, json.dumps(value, indent=1))


@contextlib.contextmanager
def replace_directory(path: Path) -> Iterator[Path]:
    """Yields a directory name (nothing is there) next to ``path``; after the block, what was made there replaces ``path``.

    If the block raises, the unfinished directory is removed and ``path`` stays as it was.
    """
    part = path.with_name(path.name + ".tmp")
    shutil.rmtree(part, ignore_errors=True)
    try:
        yield part
        shutil.rmtree(path, ignore_errors=True)
        part.rename(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def sync(path: Path) -> None:
    """fsync of a file or directory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
