"""A causal language model with heads for the values of its tokens, and the language model guided by them.

Snell et al. 2022, arXiv 2206.11871: two Q heads and a V head of two layers each, twice as wide as the model. The targets are
Polyak averages of the Q heads; they read the trunk as it is (the paper averages the trunk too).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..config import BadInput
from .log_probs import PolicyModel, before
from .token_head import ActionLinear, head_log_probs

FILE = Path("value_heads") / "model.safetensors"  # a folder of its own: engines load every file beside the model's
AFTER_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


class Estimates(NamedTuple):
    """What a ValueModel says of R tokens: all (R,) float32, but ``q`` and ``q_log_softmax`` (2, R), one row a Q head."""

    log_probs: Tensor | None
    """Of the language model, in nats; None where they were not asked for."""
    q: Tensor
    q_log_softmax: Tensor
    """Of each head's Q over the vocabulary, at the token: what the conservative term reads."""
    target_q: Tensor
    """The smaller of the two target heads'; no gradient."""
    values: Tensor


class QHead(nn.Module):
    """Hidden states (R, H) to the Q of every token (R, V), or of ``actions`` (R,) alone: (R,)."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 2 * width)
        self.out = ActionLinear(2 * width, vocab_size, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, hidden: Tensor, actions: Tensor | None = None) -> Tensor:
        found: Tensor = self.out(torch.relu(self.inner(hidden)), actions)
        return found

    def scored(self, hidden: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Q and its log-softmax over the vocabulary at ``actions``, both (R,) float32; no (R, V) tensor is kept."""
        q, log_softmax = self.out(torch.relu(self.inner(hidden)), actions, True)
        return q, log_softmax


class ValueHeads(nn.Module):
    """Two Q heads, their targets (never trained by gradients) and a V head. New ones are the same on every rank, and say 0."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.q: Any = nn.ModuleList(QHead(width, vocab_size) for _ in range(2))
            self.target = nn.ModuleList(QHead(width, vocab_size) for _ in range(2))
            last = nn.Linear(2 * width, 1)
            self.v = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.target.load_state_dict(self.q.state_dict())
        self.target.requires_grad_(False)

    def restore(self, path: str) -> bool:
        """Takes the heads that a model directory holds. Returns whether there are any."""
        file = Path(path) / FILE
        if file.is_file():
            self.load_state_dict(load_file(file))
        return file.is_file()

    def averaged(self) -> list[tuple[Any, Any]]:
        """Each parameter of the Q heads with the target that follows it."""
        return list(zip(self.q.parameters(), self.target.parameters(), strict=True))

    def least(self, hidden: Tensor, actions: Tensor | None = None) -> Tensor:
        """The smaller of the targets' Q, float32: of every token (R, V), or of ``actions`` (R,)."""
        one, other = (head(hidden, actions).float() for head in self.target)
        return torch.minimum(one, other)


class ValueModel(PolicyModel):
    """A causal language model and ValueHeads on its last hidden states. Called as a model it gives Estimates."""

    def __init__(self, model: nn.Module, attention: str) -> None:
        super().__init__(model, attention)
        self.heads = heads_for(self.core).to(next(model.parameters()).dtype)

    def forward(  # type: ignore[override]
        self, tokens: Tensor, lengths: Tensor, at: Tensor, log_probs: bool
    ) -> Estimates:
        """Estimates of the tokens at flat positions ``at`` (R,); shapes as in :class:`PolicyModel`. One pass of the trunk."""
        hidden, actions = self.hidden(tokens, lengths, before(at)), tokens[at]
        head = self.core.get_output_embeddings()
        scored = [q.scored(hidden, actions) for q in self.heads.q]
        with torch.no_grad():
            target = self.heads.least(hidden, actions)
        return Estimates(
            head_log_probs(head, hidden, actions, 1.0, False)[0] if log_probs else None,
            torch.stack([q for q, _ in scored]),
            torch.stack([log_softmax for _, log_softmax in scored]),
            target,
            self.heads.v(hidden).squeeze(-1).float(),
        )

    def comparable(self, tokens: Tensor, lengths: Tensor, at: Tensor) -> Tensor:
        """The language model's log-probs (R,): packed and padded passes are compared by them."""
        return super().forward(tokens, lengths, at)[0]


class GuidedHead(nn.Module):
    """The output layer of a guided language model: logits + beta (Qhat - V), up to a constant of the position.

    softmax(log pi + beta (Qhat - V)) is the paper's policy (section 4); neither V nor log pi's normaliser changes it.
    """

    def __init__(self, head: nn.Module, heads: ValueHeads, beta: float) -> None:
        super().__init__()
        self.head, self.heads, self.beta = head, heads, beta

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(hidden)
        return logits.float() + self.beta * self.heads.least(hidden)


def heads_for(model: Any) -> ValueHeads:
    """New heads of a causal model's shape. Raises BadInput where its logits are not those of its output layer alone."""
    config = model.config.get_text_config()
    more = [name for name in AFTER_HEAD if getattr(config, name, None) not in (None, 1, 1.0)]
    if more:
        raise BadInput(
            f"{type(model).__name__} changes logits after its output layer ({more[0]}); values need a model without"
        )
    return ValueHeads(config.hidden_size, config.vocab_size)


def guide_model(model: Any, path: str, beta: float) -> None:
    """Makes the causal ``model`` of a local directory answer with its logits + beta (Qhat - V). Raises BadInput without heads."""
    heads = heads_for(model)
    if not heads.restore(path):
        raise BadInput(
            f"{path}: no {FILE} there, so there are no values to guide by; train them with job: ilql, or set rollout.engine.guide to 0"
        )
    model.set_output_embeddings(GuidedHead(model.get_output_embeddings(), heads.to(model.device, model.dtype), beta))


def save_heads(named: dict[str, Tensor], directory: str) -> None:
    """Writes heads by their names (as of :class:`ValueHeads`) into a model directory."""
    file = Path(directory) / FILE
    file.parent.mkdir()
    save_file(named, file)
