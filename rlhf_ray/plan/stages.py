"""Seconds of each stage, from FLOPs, bytes and the device's peak; nothing is fitted to a run (calibrate.py does that).

A forward pass takes 2 FLOPs for each parameter and token, and attention 4 L a c for a token that sees c others. The
backward pass takes twice the forward pass, and recomputation one more. A decode step reads all weights and the cache of
every row, or computes: the longer of the two counts.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..flops import TRAINING, causal_pairs, forward_flops
from .hardware import Cluster, Device
from .memory import BYTES, kv_bytes
from .shape import Shape


@dataclass(frozen=True)
class Efficiency:
    """Shares of a device's peak, and seconds that no formula gives.

    ``learn``, ``score`` and ``decode_flops`` are shares of the peak FLOP/s, ``decode_bytes`` of the memory bandwidth, for a
    wide model. At a hidden size of ``half_width`` they are half as large, since products of thin matrices are slow.
    Seconds: ``layer_s`` of a layer in a decode step, ``update_s`` of an optimizer step, ``row_s`` of a sequence in a layer
    (packed attention on a CPU takes sequences one by one), ``call_s`` of a call of the driver to workers, ``rollout_s`` of a
    step's rollouts, ``request_s`` of each request in them. ``sync``: byte/s of a weight sync.
    """

    learn: float
    score: float
    decode_flops: float
    decode_bytes: float
    half_width: float
    layer_s: float
    update_s: float
    row_s: float
    call_s: float
    rollout_s: float
    request_s: float
    sync: float

    def share(self, wide_share: float, hidden: int) -> float:
        """The share of the peak for a model of this width; ``wide_share`` is that of a wide one."""
        return wide_share * hidden / (hidden + self.half_width)


CPU = Efficiency(
    learn=1.15, score=1.1, decode_flops=0.7, decode_bytes=0.6, half_width=224, layer_s=1e-3, update_s=0.02, row_s=1e-4, call_s=0.03,
    rollout_s=0.1, request_s=3e-4, sync=1.5e9,
)  # fmt: skip
GPU = Efficiency(
    learn=0.47, score=0.56, decode_flops=0.56, decode_bytes=0.65, half_width=512, layer_s=2.5e-4, update_s=0.02, row_s=0.0, call_s=0.03,
    rollout_s=0.1, request_s=3e-4, sync=2e9,
)  # fmt: skip
GRAPHS = 3e-5  # seconds a layer where a decode step is a CUDA graph


def efficiency(device: Device) -> Efficiency:
    """What to expect of a device: CPU figures are this project's own benchmarks, GPU figures what others publish."""
    return CPU if device.is_cpu else GPU


def forward_pass_flops(s: Shape, tokens: float, squared_lengths: float, scored: float) -> float:
    """FLOPs of one forward pass over causal sequences.

    ``squared_lengths`` is the sum of their squared lengths; the head reads ``scored`` positions.
    """
    return forward_flops(s.body * tokens + s.head * scored, s.attention_width, causal_pairs(squared_lengths))


def decode_step(
    s: Shape, rows: np.ndarray, context: np.ndarray, dtype: str, device: Device, ranks: float, layer_s: float
) -> np.ndarray:
    """Seconds of decode steps with ``rows`` sequences of ``context`` tokens on average, over ``ranks`` devices.

    ``rows``, ``context`` and the result are arrays of one shape.
    """
    e = efficiency(device)
    weights = BYTES[dtype] * (s.body + s.head) / ranks
    cache = kv_bytes(s, 4 if device.is_cpu else BYTES[dtype]) * rows * context / ranks
    flops = forward_flops(rows * float(s.body + s.head), s.attention_width, rows * context) / ranks
    moved = (weights + cache) / (device.bandwidth * e.decode_bytes)
    speed = device.flops(dtype) * e.share(e.decode_flops, s.hidden)
    return np.maximum(moved, flops / speed) + s.num_layers * layer_s


def live_rows(lengths: Sequence[int], max_rows: int) -> np.ndarray:
    """The number of sequences that are decoded in each step, if a free row is filled at once from the queue ``lengths``.

    For example, lengths [3, 1, 1] with two rows: both rows in steps 0 and 1, one row in step 2, so [2, 2, 1].
    """
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
    """An engine: its model, rows at a time, dtype, devices (or the share of one), and whether it has CUDA graphs."""

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
    prefill = forward_pass_flops(s, prompts * prompt, prompts * prompt**2, prompts)
    return (
        decode
        + e.request_s * len(lengths)
        + prefill / (device.flops(engine.dtype) * e.share(e.score, s.hidden) * engine.ranks)
    )


@dataclass(frozen=True)
class Learning:
    """What the learner's ranks compute with: the model's shape and options, and the share of a device that a rank has."""

    shape: Shape
    num_parameters: float
    num_trained: float
    dtype: str
    zero_stage: int
    ranks: int
    checkpointing: bool
    micro_batch_tokens: int
    share: float = 1.0


@dataclass(frozen=True)
class Samples:
    """A step's samples: sequences, their tokens, the sum of their squared lengths, and positions that the head reads."""

    rows: float
    tokens: float
    squared_lengths: float
    scored: float


def scoring(m: Learning, samples: Samples, cluster: Cluster) -> float:
    """Seconds of one forward pass over a step's samples, shared by the ranks."""
    e, ranks = efficiency(cluster.device), m.ranks * m.share
    speed = cluster.device.flops(m.dtype) * e.share(e.score, m.shape.hidden) * ranks
    rows = e.row_s * samples.rows * m.shape.num_layers / ranks / 3.0
    compute = forward_pass_flops(m.shape, samples.tokens, samples.squared_lengths, samples.scored) / speed
    return compute + rows + _micro_batches(m, samples.tokens) * _exchange(m, cluster) * (m.zero_stage == 3)


def updating(m: Learning, samples: Samples, steps: int, cluster: Cluster) -> float:
    """Seconds of forward and backward over a step's samples once, in ``steps`` optimizer steps.

    Ranks exchange (p - 1)/p of: at ZeRO 0 and 1 gradients and parameters once a step, at 2 gradients for each micro-batch, at 3
    parameters twice and gradients once for each micro-batch. AdamW reads and writes about 28 bytes a parameter it owns.
    """
    device, e, ranks = cluster.device, efficiency(cluster.device), m.ranks * m.share
    recompute = 4.0 / 3.0 if m.checkpointing else 1.0
    flops = TRAINING * recompute * forward_pass_flops(m.shape, samples.tokens, samples.squared_lengths, samples.scored)
    compute = flops / (device.flops(m.dtype) * e.share(e.learn, m.shape.hidden) * ranks)
    compute += e.row_s * samples.rows * m.shape.num_layers * recompute / ranks + e.update_s * steps
    micros = steps * _micro_batches(m, samples.tokens / steps)
    share = m.num_trained / max(1.0, m.num_parameters)
    rounds = {0: 2.0 * steps * share, 1: 2.0 * steps * share, 2: (micros + steps) * share, 3: micros * (2.0 + share)}
    optimizer = steps * 28.0 * m.num_trained / (m.ranks if m.zero_stage else 1) / device.bandwidth
    return compute + rounds[m.zero_stage] * _exchange(m, cluster) + optimizer


def _micro_batches(m: Learning, tokens: float) -> float:
    """Micro-batches of one rank in one pass over so many ``tokens`` of all ranks: those of one optimizer step at most."""
    return max(1.0, np.ceil(tokens / m.ranks / m.micro_batch_tokens))


def _exchange(m: Learning, cluster: Cluster) -> float:
    """Seconds to move (p - 1)/p of the model's bytes once between ranks.

    Ranks of one node use its links; ranks of several nodes share each node's network.
    """
    if m.ranks == 1:
        return 0.0
    inside = m.ranks <= cluster.per_node
    speed = cluster.device.link if inside else cluster.network / min(cluster.per_node, m.ranks)
    return BYTES[m.dtype] * m.num_parameters * (m.ranks - 1) / m.ranks / (0.7 * speed)


def sync(s: Shape, dtype: str, device: Device) -> float:
    """Seconds of a verified weight sync through the object store."""
    return BYTES[dtype] * s.num_parameters / efficiency(device).sync
