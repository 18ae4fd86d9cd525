"""Seconds of each stage from FLOPs, bytes and what a device does at its best; nothing here is fitted to a run (calibrate.py is).

2 FLOPs for each parameter and token of a forward pass, attention's 4 L a c for a token that sees c others; the backward pass costs twice
the forward, recomputation once more. A decode step reads all weights and the cache of every row, or computes: whichever takes longer.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .hardware import Cluster, Device
from .memory import BYTES, kv_bytes
from .shape import Shape


@dataclass(frozen=True)
class Efficiency:
    """Shares of a device's peak that stages reach, and seconds that no formula has: a decode step's overhead for each layer, a
    call of the driver to a group of workers, and bytes/s of a verified weight sync."""

    learn: float
    score: float
    decode_flops: float
    decode_bytes: float
    layer_s: float
    call_s: float
    sync: float


CPU = Efficiency(learn=0.6, score=0.55, decode_flops=0.45, decode_bytes=0.6, layer_s=6e-4, call_s=0.03, sync=1.5e9)
GPU = Efficiency(learn=0.42, score=0.5, decode_flops=0.5, decode_bytes=0.65, layer_s=2.5e-4, call_s=0.03, sync=2e9)
GRAPHS = 3e-5  # seconds a layer where a decode step is a CUDA graph


def efficiency(device: Device) -> Efficiency:
    """What to expect of a device: CPU figures are this project's own benchmarks, GPU figures what others publish."""
    return CPU if device.is_cpu else GPU


def passes(s: Shape, tokens: float, squares: float, read: float) -> float:
    """FLOPs of one forward pass: 2 N a token of the body, the head on ``read`` positions, and 2 L a s^2 for sequences whose squared
    lengths sum to ``squares`` (causal: half of 4)."""
    return 2.0 * (s.body * tokens + s.head * read + s.num_layers * s.heads * s.head_size * squares)


def decode_step(
    s: Shape, rows: np.ndarray, context: np.ndarray, dtype: str, device: Device, ranks: float, layer_s: float
) -> np.ndarray:
    """Seconds of decode steps with ``rows`` sequences of ``context`` tokens on average (arrays of one shape), over ``ranks`` devices."""
    e = efficiency(device)
    weights = BYTES[dtype] * (s.body + s.head) / ranks
    cache = kv_bytes(s, 4 if device.is_cpu else BYTES[dtype]) * rows * context / ranks
    flops = rows * (2.0 * (s.body + s.head) + 4.0 * s.num_layers * s.heads * s.head_size * context) / ranks
    moved = (weights + cache) / (device.bandwidth * e.decode_bytes)
    return np.maximum(moved, flops / (device.flops(dtype) * e.decode_flops)) + s.num_layers * layer_s


def live_rows(lengths: Sequence[int], max_rows: int) -> np.ndarray:
    """How many sequences are decoded in each step, where a free row is filled at once from the queue ``lengths``."""
    free: list[int] = [0] * min(max_rows, len(lengths))
    begins: list[int] = []
    for length in lengths:
        begins.append(heapq.heappop(free))
        heapq.heappush(free, begins[-1] + length)
    size = max(free) + 1
    ends = np.add(begins, lengths)
    return np.cumsum(np.bincount(begins, minlength=size) - np.bincount(ends, minlength=size))[:-1]


@dataclass(frozen=True)
class Engine:
    """What generates: its model, how many rows at a time, in which dtype, over how many devices (or which share of one), compiled into
    graphs or not."""

    shape: Shape
    max_rows: int
    dtype: str
    ranks: float
    graphs: bool


def generation(engine: Engine, lengths: Sequence[int], prompt: float, prompts: float, device: Device) -> float:
    """Seconds to prefill ``prompts`` distinct prompts of ``prompt`` tokens and decode responses of these ``lengths``."""
    s, e = engine.shape, efficiency(device)
    rows = live_rows(lengths, engine.max_rows)
    context = prompt + np.arange(len(rows)) % max(1, max(lengths))
    layer_s = GRAPHS if engine.graphs and not device.is_cpu else e.layer_s
    decode = float(decode_step(s, rows, context, engine.dtype, device, engine.ranks, layer_s).sum())
    prefill = passes(s, prompts * prompt, prompts * prompt**2, prompts)
    return decode + prefill / (device.flops(engine.dtype) * e.score * engine.ranks)


@dataclass(frozen=True)
class Learning:
    """What the learner's ranks compute with: their model's shape and options, and how much of a device each rank has."""

    shape: Shape
    num: float
    trained: float
    dtype: str
    stage: int
    ranks: int
    checkpointing: bool
    micro_batch_tokens: int
    share: float = 1.0


def scoring(m: Learning, tokens: float, squares: float, read: float, cluster: Cluster) -> float:
    """Seconds of one forward pass over a step's samples, shared by the ranks."""
    flops = passes(m.shape, tokens, squares, read)
    compute = flops / (cluster.device.flops(m.dtype) * efficiency(cluster.device).score * m.ranks * m.share)
    return compute + _micro_batches(m, tokens) * _exchange(m, cluster) * (m.stage == 3)


def updating(m: Learning, tokens: float, squares: float, read: float, steps: int, cluster: Cluster) -> float:
    """Seconds of forward and backward over a step's samples once, in ``steps`` optimizer steps.

    Ranks exchange (p - 1)/p of: at ZeRO 0 and 1 gradients and parameters once a step, at 2 gradients for each micro-batch, at 3
    parameters twice and gradients once for each micro-batch. AdamW reads and writes about 28 bytes a parameter it owns.
    """
    device, e = cluster.device, efficiency(cluster.device)
    recompute = 4.0 / 3.0 if m.checkpointing else 1.0
    flops = 3.0 * recompute * passes(m.shape, tokens, squares, read)
    compute = flops / (device.flops(m.dtype) * e.learn * m.ranks * m.share)
    micros = max(steps, _micro_batches(m, tokens))
    share = m.trained / max(1.0, m.num)
    rounds = {0: 2.0 * steps * share, 1: 2.0 * steps * share, 2: (micros + steps) * share, 3: micros * (2.0 + share)}[
        m.stage
    ]
    optimizer = steps * 28.0 * m.trained / (m.ranks if m.stage else 1) / device.bandwidth
    return compute + rounds * _exchange(m, cluster) + optimizer


def _micro_batches(m: Learning, tokens: float) -> float:
    """Of one rank."""
    return max(1.0, np.ceil(tokens / m.ranks / m.micro_batch_tokens))


def _exchange(m: Learning, cluster: Cluster) -> float:
    """Seconds to move (p - 1)/p of the model's bytes once between ranks: over the node's links, or what a rank has of the network."""
    if m.ranks == 1:
        return 0.0
    inside = m.ranks <= cluster.per_node
    speed = cluster.device.link if inside else cluster.network / min(cluster.per_node, m.ranks)
    return BYTES[m.dtype] * m.num * (m.ranks - 1) / m.ranks / (0.7 * speed)


def sync(s: Shape, dtype: str, device: Device) -> float:
    """Seconds of a verified weight sync through the object store."""
    return BYTES[dtype] * s.num_parameters / efficiency(device).sync
