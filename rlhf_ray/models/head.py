"""Log-probs and entropies of a language-model head on chosen hidden states, in chunks: no (tokens, vocabulary) tensor is kept.

The backward pass needs the probabilities twice: times the head's weights for the hidden states, and times the hidden
states for the weights. The first product is taken in the forward pass, where it also gives the entropy; for the second
each chunk's probabilities are made again, unless one chunk was enough and they were kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 1 << 24  # logits held at a time: tokens x vocabulary


def head_log_probs(
    head: nn.Module, hidden: Tensor, targets: Tensor, temperature: float, entropy_grad: bool
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies (R,) float32, in nats, of ``targets`` (R,) under softmax(head(hidden) / temperature).

    ``hidden`` (R, H). The entropy carries a gradient only where ``entropy_grad`` asks for it; where no gradient is taken at
    all it is not computed, and comes back as NaN.
    """
    size = max(128, CHUNK_ELEMENTS // max(1, getattr(head, "out_features", 1)))
    if not torch.is_grad_enabled():
        found = [_scored(head(h), t, temperature) for h, t in zip(hidden.split(size), targets.split(size), strict=True)]
        return torch.cat(found), torch.full((len(hidden),), float("nan"), device=hidden.device)
    if entropy_grad or not _is_plain(head):
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
    """A linear layer that can also be asked for one output of each row: ``actions`` (R,) cost no product with the others."""

    def forward(self, x: Tensor, actions: Tensor | None = None) -> Tensor:
        """(R, out) of ``x`` (R, in), or (R,) where ``actions`` are given."""
        if actions is None:
            return super().forward(x)
        found = (x * self.weight[actions]).sum(-1)
        return found if self.bias is None else found + self.bias[actions]


def _is_plain(head: nn.Module) -> bool:
    """Whether the head is one matrix that is here whole: no bias, no adapter, not partitioned by ZeRO-3."""
    return type(head) in (nn.Linear, ActionLinear) and head.bias is None and not hasattr(head.weight, "ds_id")


def _by_autograd(
    head: nn.Module, hidden: Tensor, targets: Tensor, temperature: float, entropy_grad: bool, size: int
) -> tuple[Tensor, Tensor]:
    def piece(states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return token_log_probs(head(states), ids, temperature, entropy_grad)

    if len(hidden) <= size:
        return piece(hidden, targets)
    parts = [
        checkpoint(piece, h, t, use_reentrant=False)
        for h, t in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    return logits.float() if temperature == 1.0 else logits.float().div_(temperature)


def _scored(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    logits = _scaled(logits, temperature)
    return logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(-1)


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
            mean = p @ weight
            log_probs.append(chosen - normaliser)
            entropies.append(normaliser - (h * mean).sum(-1, dtype=torch.float32) / temperature)
            expected.append(mean)
            normalisers.append(normaliser)
            kept = p if len(hidden) <= size and weight.requires_grad else None
        ctx.save_for_backward(hidden, weight, targets, torch.cat(expected), torch.cat(normalisers), kept)
        ctx.temperature, ctx.size = temperature, size
        found = torch.cat(log_probs), torch.cat(entropies)
        ctx.mark_non_differentiable(found[1])
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, expected, normalisers, kept = ctx.saved_tensors
        scale = (grads[0] / ctx.temperature).to(hidden.dtype)[:, None]
        for_hidden = (weight[targets] - expected).mul_(scale) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return for_hidden, None, None, None, None
        scaled = hidden * scale
        for_weight = torch.zeros_like(weight)
        parts = (x.split(ctx.size) for x in (hidden, scaled, normalisers))
        for h, s, normaliser in zip(*parts, strict=True):
            if kept is None:
                z = _scaled(h @ weight.T, ctx.temperature)
                p = z.sub_(normaliser[:, None]).exp_().to(weight.dtype)
            else:
                p = kept
            for_weight.addmm_(p.T, s, alpha=-1.0)
        return for_hidden, for_weight.index_add_(0, targets, scaled), None, None, None
