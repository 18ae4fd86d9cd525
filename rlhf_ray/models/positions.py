"""The shift by one between a token and the hidden state that predicts it; nothing else shifts."""

from __future__ import annotations

from torch import Tensor


def predicting_positions(token_positions: Tensor) -> Tensor:
    """The flat positions (R,) whose hidden states predict the tokens at ``token_positions`` (R,).

    No token may be the first of its sequence: nothing predicts it.

    Example: sequences ``a b c`` and ``d e``, end to end, have the predicted tokens b, c, e at 1, 2, 4. Their log-probs
    are read from the hidden states of a, b, d, at 0, 1, 3. The values of a critic are read there too.
    """
    return token_positions - 1
