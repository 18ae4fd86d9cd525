"""What a pipeline's stage is made of, as hashes: its config, the files it reads and the stages before it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..run.reader import read_manifest

LONGER = ("num_steps", "evaluate")  # a stage whose other keys are the same goes on where it stands
ELSEWHERE = ("cluster", "log", "checkpoint")  # what changes neither the stage nor its result


@dataclass(frozen=True)
class Lineage:
    """``inputs``: what a stage's checkpoints depend on; ``outputs``: what its result depends on; ``files``: hashes of what it read."""

    inputs: str
    outputs: str
    files: dict[str, str]


def trace(job: Any, root: Path, before: dict[str, str]) -> Lineage:
    """The lineage of a settled stage of the pipeline in ``root``; ``before`` are the outputs of the stages before it.

    A file that is gone counts as it was when the stage read it, so that its data may be deleted once it is finished.
    """
    tree = job.model_dump(mode="json")
    known = read_manifest(Path(job.run.dir)).get("files", {})
    files: dict[str, str] = {}
    for leaf in sorted(set(_leaves(tree))):
        inside = leaf.startswith(f"{root}/")
        if inside and leaf.removeprefix(f"{root}/").split("/")[0] in before:
            files[leaf] = before[leaf.removeprefix(f"{root}/").split("/")[0]]
        elif not inside and (found := _content(leaf) or known.get(leaf)) is not None:
            files[leaf] = found
    kept = {k: v for k, v in tree.items() if k not in (*LONGER, *ELSEWHERE, "run")}
    inputs = _hash([kept, job.run.seed, files])
    return Lineage(inputs, _hash([inputs, {k: tree.get(k) for k in LONGER}]), files)


def set_aside(directory: Path, inputs: str) -> Path | None:
    """Renames a stage's directory that was made of other inputs; returns its new name, None where there was nothing to do."""
    made = read_manifest(directory).get("inputs")
    if made is None or made == inputs:
        return None
    number = 1
    while (target := directory.with_name(f"{directory.name}.old-{number}")).exists():
        number += 1
    directory.rename(target)
    return target


def is_done(state: dict[str, Any], outputs: str) -> bool:
    """Whether a manifest is that of a finished stage with this result."""
    return state.get("state") == "finished" and state.get("outputs") == outputs


def _leaves(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from _leaves(value)
    elif isinstance(node, str) and node:
        yield node


def _content(leaf: str) -> str | None:
    """Hash of the file that a config value names (a function's: of its file), of a folder its files' names, sizes and times."""
    try:
        path = Path(leaf).expanduser()
        path = path if path.exists() else Path(leaf.rpartition(":")[0] or leaf).expanduser()
        if path.is_file():
            with path.open("rb") as opened:
                return hashlib.file_digest(opened, "sha256").hexdigest()
        if path.is_dir() and any(
            path.glob("*.json")
        ):  # a model, a saved dataset; no folder that only has a value's name
            found = sorted((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in path.iterdir() if f.is_file())
            return _hash([list(f) for f in found])
    except OSError:  # too long for a name, or not ours to read
        return None
    return None


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
