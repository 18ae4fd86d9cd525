"""What devices can do: a table of GPUs by their data sheets, and this machine's CPU, measured."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import psutil

from ..config import BadInput

GIB = float(1 << 30)


@dataclass(frozen=True)
class Device:
    """A GPU, or all cores of a CPU machine.

    ``memory`` in bytes; ``bf16`` and ``float32`` in dense FLOP/s (no sparsity); ``bandwidth`` of its memory and ``link`` to the
    other devices of its node in byte/s, one direction.
    """

    name: str
    memory: float
    bf16: float
    float32: float
    bandwidth: float
    link: float

    @property
    def is_cpu(self) -> bool:
        """Whether roles share cores instead of owning a device."""
        return self.name.startswith("CPU")

    @property
    def kind(self) -> str:
        """'cpu' or 'cuda', as torch names it."""
        return "cpu" if self.is_cpu else "cuda"

    def flops(self, dtype: str) -> float:
        """Peak FLOP/s of matrix products in ``dtype``."""
        return self.bf16 if dtype == "bfloat16" else self.float32


@dataclass(frozen=True)
class Cluster:
    """``nodes`` equal machines of ``per_node`` devices each; ``host_memory`` in bytes and ``cores`` of each machine.

    ``network`` is what a node sends to others, in byte/s. A CPU machine is one device.
    """

    device: Device
    per_node: int
    nodes: int
    host_memory: float
    cores: int
    network: float = 50e9

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise BadInput(f"--nodes {self.nodes}: give a whole number of at least 1")

    def resources(self) -> list[dict[str, float]]:
        """What Ray would say of each node."""
        gpus = {} if self.device.is_cpu else {"GPU": float(self.per_node)}
        return [{"CPU": float(self.cores), **gpus} for _ in range(self.nodes)]


def _gpu(name: str, gib: float, bf16: float, float32: float, bandwidth: float, link: float) -> Device:
    """GiB, TFLOP/s, TFLOP/s, TB/s, GB/s as the data sheets give them."""
    return Device(name, gib * GIB, bf16 * 1e12, float32 * 1e12, bandwidth * 1e12, link * 1e9)


# GiB as the driver shows them; dense bf16, float32 without tensor cores; NVLink in one direction, PCIe where there is none
GPUS = [
    _gpu("A100-40GB", 39.4, 312, 19.5, 1.555, 300), _gpu("A100-80GB", 79.2, 312, 19.5, 2.039, 300),
    _gpu("A800-80GB", 79.2, 312, 19.5, 2.039, 200), _gpu("H100-80GB", 79.2, 989, 67, 3.35, 450),
    _gpu("H800-80GB", 79.2, 989, 67, 3.35, 200), _gpu("H20-96GB", 95.6, 148, 44, 4.0, 450),
    _gpu("H200-141GB", 139.8, 989, 67, 4.8, 450), _gpu("GH200-96GB", 95.0, 989, 67, 4.0, 450),
    _gpu("B200-180GB", 178.4, 2250, 75, 7.7, 900), _gpu("MI300X-192GB", 191.7, 1307, 163, 5.3, 448),
    _gpu("L4-24GB", 22.5, 121, 30, 0.3, 32), _gpu("L40S-48GB", 44.7, 362, 91.6, 0.864, 32),
    _gpu("A10G-24GB", 22.4, 70, 31.5, 0.6, 32), _gpu("A6000-48GB", 47.5, 155, 38.7, 0.768, 32),
    _gpu("RTX3090-24GB", 23.7, 71, 35.6, 0.936, 16), _gpu("RTX4090-24GB", 23.6, 165, 82.6, 1.008, 32),
    _gpu("RTX5090-32GB", 31.8, 209, 104.8, 1.792, 64),
]  # fmt: skip
HOST_PER_GPU = 192 * GIB  # of common cloud machines
CORES_PER_GPU = 16


def cluster(text: str, nodes: int = 1) -> Cluster:
    """'8xH100-80GB' on each of ``nodes`` machines; the size may be left out where there is one. Raises BadInput."""
    parts = re.fullmatch(r"(?:(\d+)\s*x\s*)?(.+)", text.strip(), re.IGNORECASE)
    count, name = int(parts[1] or 1) if parts else 0, parts[2].lower() if parts else ""
    fitting = [g for g in GPUS if g.name.lower() == name] or [g for g in GPUS if g.name.lower().split("-")[0] == name]
    if len(fitting) != 1 or count < 1:
        names = ", ".join(g.name for g in (fitting or GPUS))
        raise BadInput(f"--gpus {text}: give a count and a GPU as in 8xH100-80GB; expected one of {names}")
    return Cluster(fitting[0], count, nodes, count * HOST_PER_GPU, count * CORES_PER_GPU)


@cache
def this_machine(nodes: int = 1) -> Cluster:
    """``nodes`` machines like this one without a GPU: memory that is there, float32 products and copies as measured, once a process."""
    cores = len(os.sched_getaffinity(0))
    a = np.ones((1024, 1024), np.float32)
    block = np.ones(1 << 24, np.float32)
    other = np.ones_like(block)
    product = min(_seconds(lambda: a @ a) for _ in range(10))
    copy = min(_seconds(lambda: np.copyto(other, block)) for _ in range(5))
    peak = 2.0 * 1024**3 / product
    memory = float(psutil.virtual_memory().total)
    device = Device(f"CPU, {cores} cores", memory, peak, peak, 2.0 * block.nbytes / copy, 2.0 * block.nbytes / copy)
    return Cluster(device, 1, nodes, memory, cores)


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
