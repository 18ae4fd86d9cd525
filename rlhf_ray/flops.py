"""FLOPs of a transformer's passes by formula: the learner measures with it, and `plan` predicts.

A forward pass multiplies each token with every weight (2 FLOPs for a product and its sum) and, in each layer, each
query with the keys it sees and their values (2 + 2 FLOPs for each number of the attention's width). Kaplan et al. 2020,
arXiv 2001.08361. How many positions the head takes at a time is here because both need it too.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np

Number = TypeVar("Number", float, np.ndarray)

HEAD_CHUNK_LOGITS = 1 << 24
HEAD_CHUNK_LOGITS_GPU = 1 << 27  # a product of 128 rows runs at about a third of a GPU's peak
TRAINING = 3.0  # forward passes that forward and backward cost together: the backward pass costs two


def forward_flops(products: Number, attention_width: float, pairs: Number) -> Number:
    """FLOPs of a forward pass.

    ``products``: weights times the tokens that are multiplied with them. ``attention_width``: layers times heads times
    head size. ``pairs``: (query, key) pairs of all sequences. For example, 4 tokens in a causal model of 100 weights, 2
    layers of width 8:

        forward_flops(4 * 100, 2 * 8, causal_pairs(4**2))  # 2 * 400 + 4 * 16 * 8 = 1312
    """
    return 2.0 * products + 4.0 * attention_width * pairs


def causal_pairs(squares: float) -> float:
    """Pairs in causal sequences whose squared lengths sum to ``squares``: about half of all."""
    return squares / 2.0


def head_chunk(vocab_size: int, on_gpu: bool) -> int:
    """Positions whose logits the head holds at a time: about HEAD_CHUNK_LOGITS numbers, and no fewer than 128
    positions.

    On a CPU 524 of a vocabulary of 32,000 and 128 of 152,064; on a GPU 4,194 and 882.
    """
    return max(128, (HEAD_CHUNK_LOGITS_GPU if on_gpu else HEAD_CHUNK_LOGITS) // max(1, vocab_size))
