"""Bytes of each role, by formula: resident (weights, optimizer), and only in its stage (activations, KV cache).

The constants below were fitted to what torch's profiler counts for transformers' own models and DeepSpeed 0.19
(tests/unit/plan/test_memory.py does it again for activations). b is 2 bytes for bfloat16 and 4 for float32; N parameters,
T tokens of a micro-batch, L layers, h width, a width of all heads, k that of the key heads, f inner width of the MLP,
V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..flops import head_chunk
from .hardware import GIB
from .shape import Shape

BYTES = {"float32": 4, "bfloat16": 2}
MOMENTS = {"adamw": 8.0, "adamw_8bit": 2.0, "muon": 8.0, "sgd": 0.0}
"""Bytes of a parameter's moments: two in float32, two of a byte each, or none. Muon has one, and AdamW's two for embeddings and head:
counted like AdamW's, which is too much for large models."""
BUCKET = 5e8  # DeepSpeed's reduce_bucket_size, allocated whole on a GPU
LIVE = 1e9  # its stage3_max_live_parameters
CONTEXT = 0.9 * GIB  # CUDA context, cuBLAS and NCCL buffers of one process
PROCESS = 0.55e9  # a worker that has imported everything
GPU_PROCESS = 2.5e9  # the same with CUDA's libraries
HEAP = 1.36  # memory of a process over what lives in it (malloc)
CACHING = 1.08  # the same of a GPU (the caching allocator)
RESERVED = 1.2
"""What torch's allocator reserves over the activations it has allocated. Micro-batches differ in length, so freed blocks do not fit the
next ones. Without expandable segments it would be up to 1.5; a learner has them (actors/environment.py)."""
ACTIVATIONS = {"activations", "logits"}
INNER = {"gpt2": 5, "gpt_neox": 2, "bert": 2}  # inner activations that an MLP of two products keeps, by family
WIDE = {"gpt2": 4, "gpt_neox": 3, "bert": 4}  # activations of the model's width kept by a layer's norms


@dataclass(frozen=True)
class Need:
    """Bytes that one worker of a role takes of its device, by name.

    ``resident``: all the time. ``working``: while its stage computes (a learner: forward and backward). ``step``: during an
    optimizer step. ``scoring``: in a forward pass alone. ``managed``: the engine keeps within a budget of its own.
    """

    role: str
    resident: Mapping[str, float]
    working: Mapping[str, float] = field(default_factory=dict)
    step: Mapping[str, float] = field(default_factory=dict)
    scoring: Mapping[str, float] = field(default_factory=dict)
    managed: bool = False

    def resident_bytes(self, cpu: bool) -> float:
        """Bytes of the process and of what is resident."""
        return sum(self.resident.values()) * (HEAP if cpu else CACHING) + (PROCESS if cpu else CONTEXT)

    def peak_extra_bytes(self, cpu: bool) -> float:
        """Bytes on top of the resident ones at the peak.

        On a CPU malloc mostly keeps freed memory, so parts that are never there together add up. A GPU's caching allocator
        uses freed memory again.
        """
        work, step = sum(self.working.values()), sum(self.step.values())
        if self.managed:
            return work
        return (work + step) * HEAP if cpu else max(activation_bytes(self.working), step * CACHING)


def activation_bytes(working: Mapping[str, float]) -> float:
    """What a GPU's allocator reserves for working memory: RESERVED of activations, CACHING of the rest."""
    return sum((RESERVED if name in ACTIVATIONS else CACHING) * count for name, count in working.items())


def layer_activations(s: Shape, dtype: str, wide: bool = False) -> float:
    """Bytes a token leaves in a layer for the backward pass.

    Attention keeps query, keys, values and its output twice: b (3a + 2k); where it is ``wide``, in float32 whatever the rest is
    (models/attention.py, on a CPU), 4 (2a + 2k) + b a. A gated MLP keeps 4f numbers. An RMS norm in bfloat16
    computes in float32 and keeps 8h bytes, in float32 3h numbers; there are two.
    """
    b = BYTES[dtype]
    if s.gated:
        norms = 16.0 * s.hidden if b == 2 else 24.0 * s.hidden
    else:
        norms = float(b * WIDE[s.family] * s.hidden)
    inner = 4 if s.gated else INNER[s.family]
    width, keys = s.heads * s.head_size, s.kv_heads * s.head_size
    return norms + b * (width + inner * s.inner) + (4 if wide else b) * 2 * (width + keys)


def head_activations(s: Shape, scored: float, dtype: str, on_gpu: bool = False) -> float:
    """Bytes of the head's passes over ``scored`` positions: a chunk's logits, and the gradient of its weights.

    Logits are 8 bytes each; 12 if the next chunk's are made before they are gone. With more than one chunk the gradient
    is summed in float32, and each bfloat16 product is added to it.
    """
    rows = head_chunk(s.vocab, on_gpu)
    one_chunk = scored <= rows
    gradient = BYTES[dtype] if one_chunk or BYTES[dtype] == 4 else 4 + BYTES[dtype]
    return (8.0 if one_chunk else 12.0) * min(scored, rows) * s.vocab + gradient * s.head


def activations(
    s: Shape,
    tokens: float,
    scored: float,
    dtype: str,
    checkpointing: bool,
    wide: bool = False,
    on_gpu: bool = False,
) -> dict[str, float]:
    """Bytes at the peak of one micro-batch's forward and backward pass, head included.

    All layers' activations, or with checkpointing b h of each and one layer's; on top of them the larger of the head's and of one
    layer's backward pass (b (2f + 2h) a token; where the MLP's function is one kernel, b (f + 2h); of ``wide`` attention its four
    gradients 4 (2a + 2k) and 2 b h, when the MLP's activations are gone).
    """
    b, layer = BYTES[dtype], layer_activations(s, dtype, wide)
    last = (
        (28.0 if b == 4 else 22.0 if s.gated else 16.0) * s.hidden * tokens
    )  # final norm, and the states the head reads
    head = head_activations(s, scored, dtype, on_gpu) + last
    backward = b * ((1.0 if INNER.get(s.family) == 2 else 2.0) * s.inner + 2.0 * s.hidden) * tokens
    if wide:
        gone = (4 if s.gated else INNER[s.family]) * b * s.inner
        gradients = 8.0 * (s.heads + s.kv_heads) * s.head_size + 2.0 * b * s.hidden
        backward = max(backward, (gradients - gone) * tokens)
    if not checkpointing:
        return {"activations": s.num_layers * layer * tokens + last, "logits": max(head, backward) - last}
    kept = s.num_layers * b * s.hidden * tokens
    again = layer * tokens + backward
    return {"activations": kept + max(again, last), "logits": max(0.0, head - max(again, last))}


def scoring_activations(s: Shape, tokens: float, scored: float, dtype: str, on_gpu: bool = False) -> dict[str, float]:
    """Bytes at the peak of a forward pass without a backward pass: one layer's activations, and a chunk's logits."""
    states_of_head = (28.0 if BYTES[dtype] == 4 else 22.0 if s.gated else 16.0) * s.hidden * tokens
    logits = 12.0 * min(scored, head_chunk(s.vocab, on_gpu)) * s.vocab
    return {"activations": max(layer_activations(s, dtype) * tokens, states_of_head), "logits": logits}


def states(num: float, trained: float, dtype: str, stage: int, ranks: int, cpu: bool, optimizer: str = "adamw") -> Need:
    """Weights, gradients and optimizer of ``num`` parameters of which ``trained`` learn, on one of ``ranks``.

    The optimizer keeps MOMENTS bytes of each parameter that learns. In bfloat16 a float32 master copy (4 bytes) comes on
    top, and at ZeRO 1 to 3 in float32 too. ZeRO 1 shards moments and master, 2 the gradients too, 3 everything
    (Rajbhandari et al., 2020). Gradients are summed in float32 whatever the model's dtype. DeepSpeed's reduction bucket is
    allocated whole on a GPU, and at stage 3 some parameters are gathered. A step flattens the gradients and copies them to
    float32.
    """
    b, p = BYTES[dtype], ranks if stage > 0 else 1
    master = 4.0 if stage > 0 or b == 2 else 0.0
    resident = {
        "weights": b * num / (p if stage == 3 else 1),
        "optimizer": (master + MOMENTS[optimizer]) * trained / p,
    }
    working = {"gradients": 4.0 * trained / (p if stage >= 2 else 1)}
    if stage > 0:
        working["bucket"] = b * (min(trained, BUCKET) if cpu else BUCKET)
    if stage == 3:
        working["gradients"] += 4.0 * trained / p
        working["whole parameters"] = b * min(num, LIVE)
    copies = {0: 4.0, 1: 4.0 + b, 2: 4.0 + b, 3: 8.0}[stage]
    return Need("", resident, working, {"step": copies * trained / p})


def frozen(num: float, dtype: str, stage: int, ranks: int) -> float:
    """Bytes of a model that only scores: sharded at ZeRO-3."""
    return BYTES[dtype] * num / (ranks if stage == 3 else 1)


def kv_bytes(s: Shape, size: int) -> float:
    """Bytes of keys and values of one token in all layers: 2 L k of ``size`` bytes."""
    return 2.0 * s.num_layers * s.kv_heads * s.head_size * size


def embedded_engine(s: Shape, rows: int, longest: int, dtype: str, cpu: bool) -> dict[str, float]:
    """Bytes of the embedded engine: weights, KV cache, and five (rows, V) float32 tensors to sample from.

    The cache has ``rows`` rows of ``longest`` tokens, rounded up to 64; on a CPU it is in float32.
    """
    room = 64 * math.ceil(longest / 64)
    return {
        "weights": float(BYTES[dtype] * s.num_parameters),
        "KV cache": rows * room * kv_bytes(s, 4 if cpu else BYTES[dtype]),
        "sampling": 20.0 * rows * s.vocab,
    }


def vllm_engine(s: Shape, ranks: int, dtype: str, budget: float, cache: float | None) -> dict[str, float]:
    """Bytes of one GPU of a vLLM worker over ``ranks`` GPUs, within its ``budget``.

    The KV cache has ``cache`` bytes; if that is None, what weights and working space leave. Below 0 the weights do not fit.
    """
    weights = BYTES[dtype] * s.num_parameters / ranks
    space = 1.5 * GIB
    return {"weights": weights, "space": space, "KV cache": budget - weights - space if cache is None else cache}
