"""Log-probs and entropies of a language-model head in chunks: no (tokens, vocabulary) tensor is kept.

The backward pass needs the probabilities twice: times the head's weights for the hidden states, and times the hidden
states for the weights. The first product is taken in the forward pass, where it also gives the entropy. For the second
each chunk's probabilities are computed again, unless there was one chunk only and they were kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..flops import head_chunk


def head_log_probs(
    head: nn.Module, hidden: Tensor, targets: Tensor, temperature: float, entropy_grad: bool
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies (R,) float32, in nats, of ``targets`` (R,) under softmax(head(hidden) / temperature).

    ``hidden`` (R, H). The entropy carries a gradient only if ``entropy_grad``. Without any gradient (torch.no_grad) it is
    not computed, and comes back as NaN.
    """
    size = head_chunk(getattr(head, "out_features", 1))
    if not torch.is_grad_enabled():
        chunks = zip(hidden.split(size), targets.split(size), strict=True)
        log_probs = torch.cat([_log_probs(head(h), t, temperature) for h, t in chunks])
        return log_probs, torch.full((len(hidden),), float("nan"), device=hidden.device)
    if entropy_grad or not _is_one_matrix(head):
        return _by_autograd(head, hidden, targets, temperature, entropy_grad, size)
    return _HeadLogProbs.apply(hidden, head.weight, targets, temperature, size)


def token_log_probs(logits: Tensor, targets: Tensor, temperature: float, entropy_grad: bool) -> tuple[Tensor, Tensor]:
    """Log-probs of ``targets`` (R,) and entropies (R,) of softmax(logits / temperature), float32; logits (R, V)."""
    log_p = torch.log_softmax(logits.float() / temperature, dim=-1)
    with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
        source = log_p if entropy_grad else log_p.detach()
        entropy = -(source.exp() * source).sum(-1)
    return log_p.gather(-1, targets[:, None]).squeeze(-1), entropy


class ActionLinear(nn.Linear):
    """A linear layer that can also be asked for one output of each row, without the product with the others."""

    def forward(self, x: Tensor, actions: Tensor | None = None) -> Tensor:
        """(R, out) of ``x`` (R, in); with ``actions`` (R,) the (R,) outputs of these numbers."""
        if actions is None:
            return super().forward(x)
        outputs = (x * self.weight[actions]).sum(-1)
        return outputs if self.bias is None else outputs + self.bias[actions]


def _is_one_matrix(head: nn.Module) -> bool:
    """Whether the head has no bias and no adapter, and ZeRO-3 has not partitioned its matrix."""
    return type(head) in (nn.Linear, ActionLinear) and head.bias is None and not hasattr(head.weight, "ds_id")


def _by_autograd(
    head: nn.Module, hidden: Tensor, targets: Tensor, temperature: float, entropy_grad: bool, size: int
) -> tuple[Tensor, Tensor]:
    """The same with autograd's backward pass; each chunk's logits are computed again in it."""

    def of_chunk(states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return token_log_probs(head(states), ids, temperature, entropy_grad)

    if len(hidden) <= size:
        return of_chunk(hidden, targets)
    chunks = zip(hidden.split(size), targets.split(size), strict=True)
    log_probs, entropies = zip(*[checkpoint(of_chunk, h, t, use_reentrant=False) for h, t in chunks], strict=True)
    return torch.cat(log_probs), torch.cat(entropies)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    return logits.float() if temperature == 1.0 else logits.float().div_(temperature)


def _log_probs(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    z = _scaled(logits, temperature)
    return z.gather(1, targets[:, None]).squeeze(1) - z.logsumexp(-1)


class _HeadLogProbs(torch.autograd.Function):
    """With z = h W' / T and p = softmax(z): d log p[t] / dh = (W[t] - p W) / T, and H = logsumexp(z) - h (p W)' / T."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, size: int
    ) -> tuple[Tensor, Tensor]:
        log_probs, entropies, expected, normalisers, kept = [], [], [], [], None
        for h, t in zip(hidden.split(size), targets.split(size), strict=True):
            z = _scaled(h @ weight.T, temperature)
            chosen = z.gather(1, t[:, None]).squeeze(1)
            normaliser = z.logsumexp(-1)
            p = z.sub_(normaliser[:, None]).exp_().to(weight.dtype)
            expected_weight = p @ weight
            log_probs.append(chosen - normaliser)
            entropies.append(normaliser - (h * expected_weight).sum(-1, dtype=torch.float32) / temperature)
            expected.append(expected_weight)
            normalisers.append(normaliser)
            kept = p if len(hidden) <= size and weight.requires_grad else None
        ctx.save_for_backward(hidden, weight, targets, torch.cat(expected), torch.cat(normalisers), kept)
        ctx.temperature, ctx.size = temperature, size
        entropy = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy)
        return torch.cat(log_probs), entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, expected, normalisers, kept = ctx.saved_tensors
        scale = (grads[0] / ctx.temperature).to(hidden.dtype)[:, None]
        hidden_grad = (weight[targets] - expected).mul_(scale) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return hidden_grad, None, None, None, None
        scaled = hidden * scale
        weight_grad = torch.zeros_like(weight)
        chunks = (x.split(ctx.size) for x in (hidden, scaled, normalisers))
        for h, s, normaliser in zip(*chunks, strict=True):
            if kept is None:
                z = _scaled(h @ weight.T, ctx.temperature)
                p = z.sub_(normaliser[:, None]).exp_().to(weight.dtype)
            else:
                p = kept
            weight_grad.addmm_(p.T, s, alpha=-1.0)
        return hidden_grad, weight_grad.index_add_(0, targets, scaled), None, None, None
