"""What a pipeline's stage is made of, as hashes: its config, the files it reads and the stages before it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import SingleJob
from ..run.reader import read_manifest

LONGER = ("num_steps", "evaluate")  # a stage whose other keys are the same continues from its checkpoint
ELSEWHERE = ("cluster", "log", "checkpoint")  # what changes neither the stage nor its result


@dataclass(frozen=True)
class Lineage:
    """Hashes of a stage.

    ``inputs``: what its checkpoints depend on; ``outputs``: what its result depends on; ``files``: what it read, by path.
    """

    inputs: str
    outputs: str
    files: dict[str, str]


def trace(job: SingleJob, root: Path, before: dict[str, str]) -> Lineage:
    """The lineage of a resolved stage of the pipeline in ``root``; ``before`` are the outputs of the stages before it.

    A file that is gone counts as it was when the stage read it, so that its data may be deleted once it is finished.
    """
    tree = job.model_dump(mode="json")
    earlier_hashes = read_manifest(Path(job.run.dir)).get("files", {})
    files: dict[str, str] = {}
    for leaf in sorted(set(_leaves(tree))):
        inside = leaf.startswith(f"{root}/")
        if inside and leaf.removeprefix(f"{root}/").split("/")[0] in before:
            files[leaf] = before[leaf.removeprefix(f"{root}/").split("/")[0]]
        elif not inside and (content_hash := _content(leaf) or earlier_hashes.get(leaf)) is not None:
            files[leaf] = content_hash
    result_keys = {k: v for k, v in tree.items() if k not in (*LONGER, *ELSEWHERE, "run")}
    inputs = _hash([result_keys, job.run.seed, files])
    return Lineage(inputs, _hash([inputs, {k: tree.get(k) for k in LONGER}]), files)


def set_aside(directory: Path, inputs: str) -> Path | None:
    """Renames a stage's directory that was made from other inputs. Returns its new name; None if it was not renamed."""
    earlier_inputs = read_manifest(directory).get("inputs")
    if earlier_inputs is None or earlier_inputs == inputs:
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
    """Hash of what a config value names: of a file (of FILE:FUNCTION too), or of the names, sizes and times in a folder."""
    try:
        path = Path(leaf).expanduser()
        path = path if path.exists() else Path(leaf.rpartition(":")[0] or leaf).expanduser()
        if path.is_file():
            with path.open("rb") as opened:
                return hashlib.file_digest(opened, "sha256").hexdigest()
        # A model or a saved dataset; a folder without JSON only happens to have the name of a value.
        if path.is_dir() and any(path.glob("*.json")):
            entries = sorted((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in path.iterdir() if f.is_file())
            return _hash([list(f) for f in entries])
    except OSError:  # too long for a name, or not readable
        return None
    return None


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
