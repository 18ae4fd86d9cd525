"""Tolerances in nats: how far the log-probs of two implementations of one model may lie apart.

Each table has an entry for every dtype of a config. bfloat16 has 8 bits of precision, so single tokens differ by
tenths.
"""

from __future__ import annotations

PACKED_FORWARD = {"float32": 1e-3, "bfloat16": 0.2}
"""The learner's packed forward pass against one sequence at a time; beyond it the learner pads."""

CACHED_DECODING = {"float32": 1e-3, "bfloat16": 0.3}
"""The engine's KV cache against the model's plain forward pass; beyond it the engine recomputes every prefix."""

WEIGHT_SYNC = {"float32": 1e-3, "bfloat16": 0.3}
"""The engine against the learner in the mean, on the probe of the first weight sync; later: weights/manifest.py."""


def dtype_name(dtype: object) -> str:
    """A torch dtype as configs and the tables above name it: 'float32', 'bfloat16'."""
    return str(dtype).removeprefix("torch.")
