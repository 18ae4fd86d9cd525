"""FLOPs of a transformer's passes by formula: the learner measures with it, and `plan` predicts.

A forward pass multiplies each token with every weight (2 FLOPs for a product and its sum) and, in each layer, each
query with the keys it sees and their values (2 + 2 FLOPs for each number of the attention's width). Kaplan et al. 2020,
arXiv 2001.08361.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np

Number = TypeVar("Number", float, np.ndarray)

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
