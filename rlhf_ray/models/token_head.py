"""Log-probs and entropies of a language-model head in chunks: no (tokens, vocabulary) tensor is kept.

The head is called once for each micro-batch, and makes its chunks inside. At ZeRO-3 each call of a module gathers its
parameters from all ranks, and ranks have different numbers of chunks: a call for each chunk would make the ranks wait
for different collectives.

The backward pass needs the probabilities twice: times the head's weights for the hidden states, and times the hidden
states for the weights. Without a gradient of the entropy, the first product is taken in the forward pass, where it also
gives the entropy. For the second product the probabilities of each chunk are computed again, unless there was only one
chunk, whose probabilities were kept.
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

    ``head`` comes from :func:`scoring_head`, ``hidden`` (R, H). The entropy carries a gradient only if
    ``entropy_grad``. Without any gradient (torch.no_grad) it is not computed, and comes back as NaN.
    """
    log_probs, entropy = head(hidden, targets, temperature, entropy_grad).unbind()
    return log_probs, entropy if entropy_grad else entropy.detach()


def token_log_probs(logits: Tensor, targets: Tensor, temperature: float, entropy_grad: bool) -> tuple[Tensor, Tensor]:
    """Log-probs of ``targets`` (R,) and entropies (R,) of softmax(logits / temperature), float32; logits (R, V)."""
    log_p = torch.log_softmax(logits.float() / temperature, dim=-1)
    with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
        source = log_p if entropy_grad else log_p.detach()
        entropy = -(source.exp() * source).sum(-1)
    return log_p.gather(-1, targets[:, None]).squeeze(-1), entropy


def scoring_head(head: Any) -> Any:
    """``head`` itself, an output layer, whose class is from now on one that also scores tokens: a ScoringHead.

    Parameters and their names stay. A plain linear layer has the backward pass of this file, any other layer (one with
    an adapter, for instance) that of autograd.
    """
    if not isinstance(head, ScoringHead):
        kind = type(head)
        head.__class__ = (
            ScoringLinear if kind is nn.Linear else type(f"Scoring{kind.__name__}", (ScoringHead, kind), {})
        )
    return head


class ScoringHead(nn.Module):
    """Mixed into the class of an output layer: a call may also ask for the log-probs and entropies of given tokens."""

    def forward(
        self, hidden: Tensor, targets: Tensor | None = None, temperature: float = 1.0, entropy_grad: bool = False
    ) -> Tensor:
        """Logits (R, V) of ``hidden`` (R, H); with ``targets`` (R,), their log-probs and entropies (2, R) float32.

        They are one tensor, because ZeRO-3 gathers the parameters once for each output that a gradient comes back to.
        """
        if targets is None:
            logits: Tensor = super().forward(hidden)
            return logits
        size = head_chunk(getattr(self, "out_features", 1), hidden.is_cuda)
        if not torch.is_grad_enabled():
            chunks = zip(hidden.split(size), targets.split(size), strict=True)
            log_probs = torch.cat([_log_probs(super(ScoringHead, self).forward(h), t, temperature) for h, t in chunks])
            return torch.stack([log_probs, torch.full_like(log_probs, float("nan"))])
        return self._scores(hidden, targets, temperature, entropy_grad, size)

    def _scores(self, hidden: Tensor, targets: Tensor, temperature: float, entropy_grad: bool, size: int) -> Tensor:
        """Log-probs and entropies (2, R) by autograd. Each chunk's logits are computed again in the backward pass."""

        def of_chunk(states: Tensor, ids: Tensor) -> Tensor:
            logits = super(ScoringHead, self).forward(states)
            return torch.stack(token_log_probs(logits, ids, temperature, entropy_grad))

        if len(hidden) <= size:
            return of_chunk(hidden, targets)
        chunks = zip(hidden.split(size), targets.split(size), strict=True)
        return torch.cat([checkpoint(of_chunk, h, t, use_reentrant=False) for h, t in chunks], dim=1)


class ScoringLinear(ScoringHead, nn.Linear):
    """A linear output layer, with or without bias, that scores tokens with its own backward pass."""

    def _scores(self, hidden: Tensor, targets: Tensor, temperature: float, entropy_grad: bool, size: int) -> Tensor:
        scores: Tensor = _TokenScores.apply(hidden, self.weight, self.bias, targets, temperature, entropy_grad, size)
        return scores


class ActionLinear(nn.Linear):
    """A linear layer that can also be asked for one output of each row, without the product with the others."""

    def forward(self, x: Tensor, actions: Tensor | None = None, log_softmax: bool = False) -> Tensor:
        """(R, out) of ``x`` (R, in); with ``actions`` (R,) the (R,) outputs of these numbers.

        With ``log_softmax`` (2, R) float32: these outputs, and their log-softmax over all outputs.
        """
        if actions is None:
            return super().forward(x)
        outputs = (x * self.weight[actions]).sum(-1)
        outputs = outputs if self.bias is None else outputs + self.bias[actions]
        if not log_softmax:
            return outputs
        size = head_chunk(self.out_features, x.is_cuda)
        scores = _TokenScores.apply(x, self.weight, self.bias, actions, 1.0, False, size)
        return torch.stack([outputs.float(), scores[0]])


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """Logits (R, V) float32 over the temperature."""
    return _scaled(nn.functional.linear(hidden, weight, bias), temperature)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    return logits.float() if temperature == 1.0 else logits.float().div_(temperature)


def _log_probs(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    z = _scaled(logits, temperature)
    return z.gather(1, targets[:, None]).squeeze(1) - z.logsumexp(-1)


class _TokenScores(torch.autograd.Function):
    """Log-probs and entropies (2, R) of a linear head, chunk by chunk.

    With z = (h W' + b) / T, p = softmax(z) and H = logsumexp(z) - p z, for one position:

        d log p[t] / dz = e[t] - p         so that  d log p[t] / dh = (W[t] - p W) / T,  and H needs p W, not p z
        d H / dz        = -p (log p + H)

    Only ``weight`` and ``bias`` themselves are saved, not their values: at ZeRO-3 these are gone after the forward
    pass, and are gathered again before the backward pass. The weights' gradient is summed over chunks in float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        entropy_grad: bool,
        size: int,
    ) -> Tensor:
        ctx.temperature, ctx.size, ctx.entropy_grad = temperature, size, entropy_grad
        log_probs, entropies, expected, normalisers, kept = [], [], [], [], None
        for h, t in zip(hidden.split(size), targets.split(size), strict=True):
            z = _logits(h, weight, bias, temperature)
            chosen = z.gather(1, t[:, None]).squeeze(1)
            normaliser = z.logsumexp(-1)
            log_probs.append(chosen - normaliser)
            normalisers.append(normaliser)
            log_p = z.sub_(normaliser[:, None])
            if entropy_grad:
                entropies.append(-(log_p.exp() * log_p).sum(-1))
                continue
            p = log_p.exp_().to(weight.dtype)
            expected_weight = p @ weight
            expected_logit = (h * expected_weight).sum(-1, dtype=torch.float32)
            if bias is not None:
                expected_logit += p @ bias
            entropies.append(normaliser - expected_logit / temperature)
            expected.append(expected_weight)
            kept = p if len(hidden) <= size and weight.requires_grad else None
        entropy = torch.cat(entropies)
        expected_weights = None if entropy_grad else torch.cat(expected)
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(normalisers), entropy, expected_weights, kept)
        return torch.stack([torch.cat(log_probs), entropy])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normalisers, entropy, expected_weights, kept = ctx.saved_tensors
        log_prob_grad, entropy_grad = (grads[0] / ctx.temperature)[:, :, None]
        scale = log_prob_grad.to(hidden.dtype)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        hidden_grad = weight_grad = bias_grad = None
        if needs_hidden:
            chosen = weight[targets]
            hidden_grad = (chosen if expected_weights is None else chosen - expected_weights).mul_(scale)
        if needs_weight:
            weight_grad = torch.zeros_like(weight, dtype=torch.float32)  # a frequent target is added many times
        if needs_bias:
            bias_grad = torch.zeros_like(bias, dtype=torch.float32)
        if needs_weight or needs_bias or ctx.entropy_grad:
            for start in range(0, len(hidden), ctx.size):
                rows = slice(start, start + ctx.size)
                p, factor = kept, scale[rows]
                if p is None:
                    log_p = _logits(hidden[rows], weight, bias, ctx.temperature).sub_(normalisers[rows, None])
                    p = log_p.exp() if ctx.entropy_grad else log_p.exp_().to(weight.dtype)
                if ctx.entropy_grad:
                    log_p.add_(entropy[rows, None]).mul_(entropy_grad[rows]).add_(log_prob_grad[rows])
                    p, factor = p.mul_(log_p).to(weight.dtype), torch.ones_like(factor)
                    if hidden_grad is not None:
                        hidden_grad[rows].addmm_(p, weight, alpha=-1.0)
                if weight_grad is not None:
                    _subtract_product(weight_grad, p.T, hidden[rows] * factor)
                if bias_grad is not None:
                    bias_grad -= (p.T @ factor).squeeze(1)
        if weight_grad is not None:
            weight_grad = weight_grad.index_add_(0, targets, (hidden * scale).to(weight_grad.dtype)).to(weight.dtype)
        if bias_grad is not None:
            bias_grad = bias_grad.index_add_(0, targets, log_prob_grad.squeeze(1)).to(bias.dtype)
        return hidden_grad, weight_grad, bias_grad, None, None, None, None


def _subtract_product(total: Tensor, one: Tensor, other: Tensor) -> None:
    """total -= one @ other, where ``total`` may be more exact than the two."""
    if total.dtype == one.dtype:
        total.addmm_(one, other, alpha=-1.0)
    else:
        total -= one @ other
