"""Checkpoints: a directory is complete once its manifest is there, and nothing else counts as one.

checkpoints/step-000012/
  manifest.json   run_id, step, and size and sha256 of every other file; written last
  state.json      step, KL coefficient, prompt cursor, ... (the training loop's)
  learner/        every rank's shards
  rollouts/       RL only: rollouts that are finished and not yet learned from
"""

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
    """The checkpoints of a run, of which the newest ``keep`` are kept; the only writer of RUN/checkpoints."""

    def __init__(self, directory: Path, keep: int, run_id: str | None = None) -> None:
        self.directory, self.keep, self.run_id = directory, keep, run_id
        directory.mkdir(parents=True, exist_ok=True)
        for unfinished in directory.glob("*.tmp-*"):  # of a process that was killed
            shutil.rmtree(unfinished)

    def write(self, step: int, fill: Callable[[Path], None], state: dict[str, Any]) -> Path:
        """Writes the checkpoint of ``step``: what ``fill`` puts into a directory, and ``state`` as JSON.

        ``fill`` may still change ``state``. The checkpoint is written next to its place, manifest last, and renamed;
        then older ones are removed. On any failure the unfinished directory is removed, older checkpoints stay, and the
        error is raised.
        """
        start = time.monotonic()
        final = self.directory / f"step-{step:06d}"
        temporary = self.directory / f"{final.name}.tmp-{secrets.token_hex(4)}"
        temporary.mkdir(mode=0o700)
        try:
            fill(temporary)
            (temporary / "state.json").write_text(json.dumps(state, indent=1))
            paths = [path for path in sorted(temporary.rglob("*")) if path.is_file()]
            files = {str(path.relative_to(temporary)): file_digest(path) for path in paths}
            for path in paths:
                sync(path)
            manifest = temporary / "manifest.json"
            manifest.write_text(json.dumps({"run_id": self.run_id, "step": step, "files": files}, indent=1))
            sync(manifest)
            sync(temporary)
            if final.exists():  # the same step again, after a recovery
                shutil.rmtree(final)
            os.rename(temporary, final)
            sync(self.directory)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._prune(final)
        log.info("%s written to %s in %.3f s", final.name, self.directory.name, time.monotonic() - start)
        return final

    def _prune(self, newest: Path) -> None:
        """Removes all but the last ``keep`` up to ``newest``; later ones are damaged, or the run would not be here."""
        paths = self.paths()
        end = paths.index(newest) + 1
        for path in [*paths[: max(0, end - self.keep)], *paths[end:]]:
            shutil.rmtree(path)

    def paths(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        return complete_checkpoints(self.directory)

    def latest(self) -> Path | None:
        """The newest checkpoint that is undamaged; None if there is no checkpoint. Logs an error for each damaged one.

        Raises RuntimeError if there are checkpoints and all of them are damaged: a run never starts again in silence.
        """
        paths = self.paths()
        for path in reversed(paths):
            damage = find_damage(path)
            if damage is None:
                return path
            log.error("checkpoint %s is damaged (%s); trying the one before it", path, damage)
        if paths:
            raise RuntimeError(
                f"{self.directory}: all {len(paths)} checkpoints are damaged; remove them to start again"
            )
        return None


def complete_checkpoints(directory: Path) -> list[Path]:
    """The complete checkpoints in a directory, oldest first. Changes nothing: another process may be writing there."""
    paths = [file.parent for file in directory.glob("step-*/manifest.json") if ".tmp-" not in file.parent.name]
    return sorted(paths, key=lambda path: int(path.name.removeprefix("step-")))


def find_damage(checkpoint: Path) -> str | None:
    """The first difference of a checkpoint from its manifest, such as "state.json has changed"; None if it is sound."""
    try:
        files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    except (ValueError, KeyError, TypeError):
        return "manifest.json cannot be read"
    for name, expected in files.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if file_digest(checkpoint / name) != expected:
            return f"{name} has changed"
    return None


def file_digest(path: Path) -> dict[str, Any]:
    """Size in bytes and sha256 (hexadecimal) of a file."""
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
