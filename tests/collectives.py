"""A recorder of a rank's collectives, and ranks that run a function without Ray."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from torch.distributed import ProcessGroup
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Records = dict[str, list[str]]
"""The collectives of each stage of work, in order."""


class Recorder(TorchDispatchMode):
    """Notes each collective that this thread issues while it is entered: name, tensors' dtypes and shapes, and group.

    Whoever calls it (DeepSpeed, torch or this project), a collective is an operator of the namespace c10d, and comes by
    here. ``records`` has them by the stage that :attr:`stage` names.
    """

    def __init__(self) -> None:
        super().__init__()
        self.records: Records = {}
        self.stage = "start"

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operator.namespace == "c10d":
            tensors = [x for x in tree_leaves(args) if isinstance(x, torch.Tensor)]
            shapes = " ".join(f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}" for x in tensors)
            boxed = [
                x for x in tree_leaves(args) if isinstance(x, torch.ScriptObject) and "ProcessGroup" in str(x._type())
            ]
            groups = " ".join(f"in {ProcessGroup.unbox(x).group_name}" for x in boxed)
            self.records.setdefault(self.stage, []).append(f"{operator.name()} {shapes} {groups}")
        return operator(*args, **(kwargs or {}))


def run_ranks(function: Callable[..., Any], world_size: int, directory: Path, *arguments: Any, timeout_s: float) -> Any:
    """Calls ``function(rank, port, recorder, *arguments)`` in a process for each rank; returns each rank's records.

    Records are those up to the error if a rank raises, or hangs for ``timeout_s``. The second value has each rank's
    error, or None.
    """
    with socket.socket() as listener:
        listener.bind(("", 0))
        port = listener.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    ranks = [
        context.Process(target=_run_rank, args=(function, rank, port, directory, arguments))
        for rank in range(world_size)
    ]
    for rank in ranks:
        rank.start()
    deadline = time.monotonic() + timeout_s
    for rank in ranks:
        rank.join(max(0.1, deadline - time.monotonic()))
        rank.kill()
        rank.join()
    reports = [json.loads(file.read_text()) if file.exists() else {} for file in _files(directory, world_size)]
    errors = [report.get("error", f"no report after {timeout_s} s") for report in reports]
    return [report.get("records", {}) for report in reports], errors


def _files(directory: Path, world_size: int) -> list[Path]:
    return [directory / f"rank{rank}.json" for rank in range(world_size)]


def _run_rank(function: Callable[..., Any], rank: int, port: int, directory: Path, arguments: Sequence[Any]) -> None:
    recorder, error = Recorder(), None
    torch.set_num_threads(1)
    try:
        function(rank, port, recorder, *arguments)
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
        raise
    finally:
        (directory / f"rank{rank}.json").write_text(json.dumps({"records": recorder.records, "error": error}))


def first_difference(one: Records, other: Records) -> str | None:
    """The first collective that two ranks did not issue alike, in words; None if they are all equal."""
    for stage in [*one, *(stage for stage in other if stage not in one)]:
        first, second = one.get(stage, []), other.get(stage, [])
        for i in range(max(len(first), len(second))):
            left, right = (calls[i] if i < len(calls) else "nothing" for calls in (first, second))
            if left != right:
                return f"{stage}, collective {i}: {left} on one rank, {right} on the other"
    return None
