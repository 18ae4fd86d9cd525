"""Values of tokens from recorded samples: implicit language Q-learning, as masked SUMS over ragged flat batches.

The state of token i is all tokens before it, its action is the token itself: q[i] = Q(s_i, a_i) and values[i] = V(s_i),
in units of the return. Shapes are those of advantages.py: per-token (T,), `lengths` (B,), masks bool or uint8, 1 on the
response's tokens, holes allowed. Values outside the mask never matter: no loss, no gradient, even where they are not
finite.

Snell et al. 2022, arXiv 2206.11871 (ILQL), section 4: L_Q,V = sum_i (R_i + gamma V(s_i+1) - Q(s_i, a_i))^2 +
L2_tau(Qhat - V), and alpha L_CQL. It is IQL (Kostrikov et al. 2021, arXiv 2110.06169) with CQL's term (Kumar et al.
2020, arXiv 2006.04779).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .advantages import segment_ids
from .losses import Metrics, metric


@torch.no_grad()
def td_targets(rewards: Tensor, values: Tensor, response_mask: Tensor, lengths: Tensor, gamma: float) -> Tensor:
    """R_i + gamma V(s_i+1) at each response token, 0 elsewhere: (T,), detached.

    i+1 is the sequence's next response token; after the last one the value is 0. `rewards` and `values` are (T,)
    floats. This is what makes Q's equation (IQL, eq. 6) one of policy improvement: V is an upper expectile over the
    data's actions.
    """
    at = response_mask.bool().nonzero().squeeze(-1)
    row = segment_ids(lengths)[at]
    goes_on = row[1:] == row[:-1]
    after = torch.zeros_like(values)
    after[at[:-1][goes_on]] = values[at[1:][goes_on]]
    targets = torch.zeros_like(values)
    targets[at] = rewards[at].to(values.dtype) + gamma * after[at]
    return targets


def squared_td_error(q: Tensor, targets: Tensor, response_mask: Tensor) -> tuple[Tensor, Metrics]:
    """Sum over Q heads and response tokens of (y - Q)^2: (scalar, {`loss/td`}, its mean over both).

    `q` (K, T) of K heads, which all learn the same `targets` y (T,). IQL, eq. 6; ILQL, section 4.
    """
    mask = response_mask.bool().expand_as(q)
    error = (q - targets).masked_fill(~mask, 0.0).square()
    return error.sum(), {"loss/td": metric(error, mask)}


def expectile_loss(values: Tensor, q: Tensor, response_mask: Tensor, expectile: float) -> tuple[Tensor, Metrics]:
    """Sum over response tokens of |tau - 1(u < 0)| u^2 with u = Q - V: (scalar, {`loss/expectile`}).

    `q` (T,) is the target heads' and detached; `values` (T,) learn. tau 1/2 gives the mean over the data's actions, tau
    near 1 the best of them. IQL, eq. 5. Raises ValueError unless 0 < tau < 1.
    """
    if not 0.0 < expectile < 1.0:
        raise ValueError(f"the expectile must lie between 0 and 1, got {expectile}")
    u = (q.detach() - values).masked_fill(~response_mask.bool(), 0.0)
    loss = torch.where(u < 0, 1.0 - expectile, expectile) * u.square()
    return loss.sum(), {"loss/expectile": metric(loss, response_mask)}


def conservative_loss(log_softmax: Tensor, response_mask: Tensor) -> tuple[Tensor, Metrics]:
    """Sum over Q heads and response tokens of log sum_a exp Q(s_i, a) - Q(s_i, a_i): (scalar, {`loss/conservative`}).

    `log_softmax` (K, T) is that of each head's Q(s_i, .) over the vocabulary, read at the token taken: the loss is the
    cross-entropy of Q's softmax, and pushes down tokens that the data do not take. CQL, eq. 4; ILQL's L_CQL, section 4.
    """
    mask = response_mask.bool().expand_as(log_softmax)
    loss = -log_softmax.masked_fill(~mask, 0.0)
    return loss.sum(), {"loss/conservative": metric(loss, mask)}
