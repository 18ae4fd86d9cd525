"""Atomic writes: a reader sees the complete old file or directory, or the complete new one."""

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
    """Yields a temporary path next to ``path``. After the block, that file is synced to disk and replaces ``path``.

    If the block raises, the temporary file is removed and ``path`` stays as it was.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Replaces the content of ``path`` with ``text`` in UTF-8, in one step."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Replaces the content of ``path`` with ``value`` as indented JSON, in one step."""
    write_text(path, json.dumps(value, indent=1))


@contextlib.contextmanager
def replace_directory(path: Path) -> Iterator[Path]:
    """Yields the name of a new directory next to ``path``, which the block makes; then it replaces ``path``, synced.

    If the block raises, the unfinished directory is removed and ``path`` stays as it was. A process that dies between
    the last two steps (removing the old directory, renaming the new one) leaves no ``path``, never a part of one.
    """
    temporary = path.with_name(path.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    try:
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sync(path: Path) -> None:
    """Flushes a file or a directory to disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
