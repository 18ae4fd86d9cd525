"""Python stacks of workers on any node, for the message of a hang."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

PY_SPY_S = 20.0
NODE_S = 40.0  # for a node to start a process for the task, and to run it

ProcessId = tuple[str, int]
"""Node id of Ray, and pid on that node."""


def process_of(worker: Any) -> ProcessId:
    """Where this process runs; called on an actor."""
    return str(ray.get_runtime_context().get_node_id()), os.getpid()


def dump_stacks(pids: Sequence[int]) -> list[str]:
    """py-spy's dump of each of this machine's processes, or why there is none."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    command = shutil.which("py-spy", path=path) or "py-spy"
    dumps = []
    for pid in pids:
        try:
            dump = subprocess.run(
                [command, "dump", "--pid", str(pid)], capture_output=True, text=True, timeout=PY_SPY_S, check=False
            )
            dumps.append(dump.stdout.strip() or dump.stderr.strip())
        except (OSError, subprocess.TimeoutExpired) as error:
            dumps.append(str(error))
    return dumps


def stacks(processes: Mapping[int, Any]) -> list[str]:
    """The stacks of workers, each with a head line; ``processes`` are references to :func:`process_of` by worker.

    py-spy runs on each worker's own node, in a task without resources. What cannot be read is said in its place.
    """
    dumps: dict[int, str] = {}
    by_node: dict[str, dict[int, int]] = {}  # pid of each worker
    for index, reference in processes.items():
        try:
            node, pid = ray.get(reference, timeout=1.0)
            by_node.setdefault(node, {})[index] = pid
        except RayError:
            dumps[index] = "no stack: the process is dead, or still in its constructor"
    own_node = ray.get_runtime_context().get_node_id()
    tasks = {node: _on_node(node, pids) for node, pids in by_node.items() if node != own_node}
    if own_node in by_node:
        dumps.update(zip(by_node[own_node], dump_stacks([*by_node[own_node].values()]), strict=True))
    if tasks:
        ray.wait([*tasks.values()], num_returns=len(tasks), timeout=NODE_S)
    for node, task in tasks.items():
        try:
            dumps.update(zip(by_node[node], ray.get(task, timeout=0), strict=True))
        except RayError as error:
            dumps.update(dict.fromkeys(by_node[node], f"no stack: node {node} did not answer ({type(error).__name__})"))
    return [f"worker {index}:\n{dumps[index]}" for index in sorted(dumps)]


def _on_node(node: str, pids: Mapping[int, int]) -> Any:
    task: Any = ray.remote(num_cpus=0, max_retries=0)(dump_stacks)
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return task.options(scheduling_strategy=strategy).remote([*pids.values()])
