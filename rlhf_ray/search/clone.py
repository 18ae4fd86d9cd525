"""Clones of Population Based Training: a trial that continues from another trial's checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..config import BadInput, TrainingJob
from ..run.atomic import write_json
from ..run.checkpoint import Checkpoints, complete_checkpoints
from ..run.reader import read_json


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """What a Tune checkpoint holds instead of weights: a trial, the name of its run directory, and finished steps."""

    trial: str
    run: str
    step: int


def assign_run_dir(
    trials_dir: Path, trial: str, pointer: Pointer | None, values: Mapping[str, Any]
) -> tuple[Path, Pointer | None]:
    """The run directory of a trial, and the checkpoint it clones: ``pointer`` if this names another trial, else None.

    A clone gets a new directory: NAME-1, NAME-2, ... next to NAME. Its clone.json says what it was made from, so a
    clone that failed before it reported continues in its directory instead of starting another one.
    """
    numbers = ((_clone_number(path, trial), path) for path in trials_dir.glob(f"{trial}*"))
    run_dirs = {number: path for number, path in numbers if number is not None}
    newest = max(run_dirs, default=None)
    if pointer is None:
        return (trials_dir / trial if newest is None else run_dirs[newest]), None
    if pointer.trial == trial:
        return trials_dir / pointer.run, None
    origin = {"donor": asdict(pointer), "values": dict(values)}
    if newest is not None and _read_origin(run_dirs[newest]) == origin:
        return run_dirs[newest], pointer
    number = 1 if newest is None else newest + 1
    run_dir = trials_dir / f"{trial}-{number}"
    run_dir.mkdir(parents=True)
    write_json(run_dir / "clone.json", origin)
    return run_dir, pointer


def _read_origin(run_dir: Path) -> dict[str, Any] | None:
    """What a clone was made from; None for a directory that is no clone's. Raises BadInput for a damaged clone.json."""
    return read_json(run_dir / "clone.json", "remove it; the trial is then cloned again")


def _clone_number(run_dir: Path, trial: str) -> int | None:
    """0 for the first run directory of a trial, n for its n-th clone, None for a directory of another trial."""
    suffix = run_dir.name.removeprefix(trial)
    if not suffix:
        return 0
    return int(suffix[1:]) if suffix[0] == "-" and suffix[1:].isdigit() else None


def clone_checkpoint(donor: Path, step: int, run_dir: Path, job: TrainingJob, values: Mapping[str, Any]) -> None:
    """Copies the donor's checkpoint of ``step`` into a run directory, with the metrics and evaluations up to it.

    If the donor has removed that checkpoint, its newest one is copied. If the search is over the KL coefficient, the
    copy gets the clone's own. Raises BadInput if the donor has no checkpoint.
    """
    checkpoints = Checkpoints(run_dir / "checkpoints", job.checkpoint.keep)
    if checkpoints.paths():
        return  # this clone has been started before
    for source in _candidates(donor / "checkpoints", step):
        try:
            state = json.loads((source / "state.json").read_text())
            if "algorithm.kl.coef" in values:
                state["kl_coef"] = values["algorithm.kl.coef"]
            checkpoints.write(state["step"], partial(_copy_folders, source), state)
        except OSError:  # the donor removed it while it was copied
            continue
        for name in ("metrics.jsonl", "evaluations"):
            if (donor / name).is_dir():
                shutil.copytree(donor / name, run_dir / name, dirs_exist_ok=True)
            elif (donor / name).is_file():
                shutil.copyfile(donor / name, run_dir / name)
        return
    raise BadInput(f"trial {run_dir.name}: {donor} has no checkpoint to clone")


def _candidates(checkpoints: Path, step: int) -> Iterator[Path]:
    """The checkpoint of ``step``; then the newest one, again and again while the donor writes newer ones."""
    first = checkpoints / f"step-{step:06d}"
    tried = {first}
    if first in complete_checkpoints(checkpoints):
        yield first
    while untried := [path for path in complete_checkpoints(checkpoints) if path not in tried]:
        tried.add(untried[-1])
        yield untried[-1]


def _copy_folders(source: Path, target: Path) -> None:
    """Copies learner/ and rollouts/; state.json and the manifest are written for the clone."""
    for item in source.iterdir():
        if item.is_dir():
            shutil.copytree(item, target / item.name)
