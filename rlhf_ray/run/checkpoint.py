"""Checkpoints: the only writer. A directory is complete when its manifest is there, or it does not exist."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .atomic import sync

log = logging.getLogger(__name__)


class Checkpoints:
    """RUN/checkpoints/step-000012/: written beside its place, manifest last, renamed; older ones pruned afterwards."""

    def __init__(self, directory: Path, keep: int, run_id: str | None = None) -> None:
        self.directory, self.keep, self.run_id = directory, keep, run_id
        directory.mkdir(parents=True, exist_ok=True)
        for left in directory.glob("*.tmp-*"):
            shutil.rmtree(left)

    def write(self, step: int, fill: Callable[[Path], None], state: dict[str, Any]) -> Path:
        """Writes what ``fill`` puts into a directory, and ``state`` as JSON, as the checkpoint of ``step``.

        On any failure the unfinished directory is removed, older checkpoints stay, and the error goes on.
        """
        began = time.monotonic()
        final = self.directory / f"step-{step:06d}"
        part = self.directory / f"{final.name}.tmp-{secrets.token_hex(4)}"
        part.mkdir(mode=0o700)
        try:
            fill(part)
            (part / "state.json").write_text(json.dumps(state, indent=1))
            files = {str(f.relative_to(part)): describe(f) for f in sorted(part.rglob("*")) if f.is_file()}
            for name in files:
                sync(part / name)
            manifest = part / "manifest.json"
            manifest.write_text(json.dumps({"run_id": self.run_id, "step": step, "files": files}, indent=1))
            sync(manifest)
            sync(part)
            if final.exists():  # the same step again, after a recovery
                shutil.rmtree(final)
            os.rename(part, final)
            sync(self.directory)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        complete = self.complete()
        newest = complete.index(final) + 1  # what comes after it was damaged, or it would have been gone on from
        for old in [*complete[: max(0, newest - self.keep)], *complete[newest:]]:
            shutil.rmtree(old)
        log.info("%s written to %s in %.3f s", final.name, self.directory.name, time.monotonic() - began)
        return final

    def complete(self) -> list[Path]:
        """Checkpoints that have a manifest, oldest first."""
        return complete(self.directory)

    def latest(self) -> Path | None:
        """The newest checkpoint whose files are what its manifest says; damaged ones are passed over, loudly.

        Raises RuntimeError where there are checkpoints and all of them are damaged: never a silent fresh start.
        """
        found = self.complete()
        for path in reversed(found):
            wrong = verify(path)
            if wrong is None:
                return path
            log.error("checkpoint %s is damaged (%s); trying the one before it", path, wrong)
        if found:
            raise RuntimeError(
                f"{self.directory}: all {len(found)} checkpoints are damaged; remove them to start afresh"
            )
        return None


def complete(directory: Path) -> list[Path]:
    """Checkpoints in a directory that have a manifest, oldest first; touches nothing, so that another process may be writing there."""
    found = [p.parent for p in directory.glob("step-*/manifest.json") if ".tmp-" not in p.parent.name]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        files = json.loads((path / "manifest.json").read_text())["files"]
    except (ValueError, KeyError, TypeError):
        return "manifest.json cannot be read"
    for name, expected in files.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if describe(path / name) != expected:
            return f"{name} has changed"
    return None


def describe(path: Path) -> dict[str, Any]:
    """Size in bytes and sha256 of a file."""
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
