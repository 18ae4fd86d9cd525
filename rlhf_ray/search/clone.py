"""Population Based Training's clones: a trial goes on from another one's real checkpoint, in a run directory of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..config import BadInput
from ..run.atomic import write_json
from ..run.checkpoint import Checkpoints, complete_checkpoints


def settle(
    directory: Path, trial: str, pointer: Mapping[str, Any] | None, values: Mapping[str, Any]
) -> tuple[Path, Mapping[str, Any] | None]:
    """The run directory of a trial, and whose checkpoint it clones: that of ``pointer`` where this names another trial.

    A clone has a directory of its own beside the one that the trial had before (NAME, NAME-1, ...), which says in clone.json what it was
    made of, so that a clone that failed goes on where it was.
    """
    mine = [p for p in directory.glob(f"{trial}*") if _generation(p, trial) >= 0]
    own = sorted(mine, key=lambda p: _generation(p, trial))
    if pointer is None or pointer["trial"] == trial:
        return (directory / pointer["run"] if pointer else own[-1] if own else directory / trial), None
    made_of = {"donor": dict(pointer), "values": dict(values)}
    if own and (note := own[-1] / "clone.json").is_file() and json.loads(note.read_text()) == made_of:
        return own[-1], pointer
    home = directory / f"{trial}-{_generation(own[-1], trial) + 1 if own else 1}"
    home.mkdir(parents=True)
    write_json(home / "clone.json", made_of)
    return home, pointer


def _generation(path: Path, trial: str) -> int:
    """0 for the trial's first directory, n for its n-th clone, -1 for another trial's."""
    rest = path.name.removeprefix(trial)
    if not rest:
        return 0
    return int(rest[1:]) if rest[0] == "-" and rest[1:].isdigit() else -1


def clone(donor: Path, step: int, home: Path, job: Any, values: Mapping[str, Any]) -> None:
    """Makes the donor's checkpoint of ``step`` the first one of ``home``, or its newest where that one is pruned already; with it the
    metrics and evaluations so far. The KL coefficient is the clone's own where the search is over it."""
    mine = Checkpoints(home / "checkpoints", job.checkpoint.keep)
    if mine.paths():
        return  # this clone went on before
    for found in _checkpoints(donor / "checkpoints", step):
        try:
            state = json.loads((found / "state.json").read_text())
            if "algorithm.kl.coef" in values:
                state["kl_coef"] = values["algorithm.kl.coef"]
            mine.write(state["step"], partial(_copy, found), state)
        except OSError:  # pruned while it was copied
            continue
        for name in ("metrics.jsonl", "evaluations"):
            if (donor / name).is_dir():
                shutil.copytree(donor / name, home / name, dirs_exist_ok=True)
            elif (donor / name).is_file():
                shutil.copyfile(donor / name, home / name)
        return
    raise BadInput(f"trial {home.name}: {donor} has no checkpoint to clone")


def _checkpoints(donor: Path, step: int) -> Iterator[Path]:
    """The donor's checkpoint of ``step``; then, as often as the donor has a newer one, its newest."""
    asked = donor / f"step-{step:06d}"
    tried = {asked}
    if asked in complete_checkpoints(donor):
        yield asked
    while fresh := [p for p in complete_checkpoints(donor) if p not in tried]:
        tried.add(fresh[-1])
        yield fresh[-1]


def _copy(source: Path, target: Path) -> None:
    for item in source.iterdir():
        if item.is_dir():
            shutil.copytree(item, target / item.name)
