"""Value heads on a causal language model (ILQL), and the language model that they guide.

Snell et al. 2022, arXiv 2206.11871: two Q heads and a V head, each of two layers and twice as wide as the model. The
target heads are Polyak averages of the Q heads. They read the hidden states of the model that is trained; the paper
averages the model too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..config import BadInput
from .log_probs import PolicyModel
from .positions import predicting_positions
from .token_head import ActionLinear, head_log_probs

HEADS_FILE = Path("value_heads") / "model.safetensors"  # in a folder, since engines load every file next to the model's
LOGIT_OPTIONS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


class Estimates(NamedTuple):
    """Outputs of a ValueModel for R tokens, all float32. A Q or V is in units of reward."""

    log_probs: Tensor | None
    """(R,) the language model's log-probs in nats; None if they were not asked for."""
    q: Tensor
    """(2, R) each Q head's value of the token."""
    q_log_softmax: Tensor
    """(2, R) log-softmax of each head's Q over the vocabulary, at the token; the conservative term uses it."""
    target_q: Tensor
    """(R,) the smaller Q of the two target heads; no gradient."""
    values: Tensor
    """(R,) V of the state before the token."""


class QHead(nn.Module):
    """Q of tokens from hidden states (R, H). A new head gives 0."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 2 * width)
        self.out = ActionLinear(2 * width, vocab_size, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, hidden: Tensor, actions: Tensor | None = None) -> Tensor:
        """Q of every token (R, V), or (R,) of ``actions`` (R,) alone."""
        q: Tensor = self.out(torch.relu(self.inner(hidden)), actions)
        return q

    def score(self, hidden: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Q and its log-softmax over the vocabulary at ``actions``, both (R,) float32; no (R, V) tensor is kept."""
        q, log_softmax = self.out(torch.relu(self.inner(hidden)), actions, True)
        return q, log_softmax


class ValueHeads(nn.Module):
    """Two Q heads, their targets (which no gradient trains) and a V head.

    New heads are the same on every rank and give 0.
    """

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
        """Loads the heads from a model directory. Returns whether it has any."""
        file = Path(path) / HEADS_FILE
        if file.is_file():
            self.load_state_dict(load_file(file))
        return file.is_file()

    def parameter_pairs(self) -> list[tuple[Any, Any]]:
        """Each parameter of the Q heads with its moving average, the parameter of the target head."""
        return list(zip(self.q.parameters(), self.target.parameters(), strict=True))

    def smaller_target_q(self, hidden: Tensor, actions: Tensor | None = None) -> Tensor:
        """The smaller Q of the two target heads, float32: (R, V) of every token, or (R,) of ``actions`` (R,)."""
        first, second = (head(hidden, actions).float() for head in self.target)
        return torch.minimum(first, second)


class ValueModel(PolicyModel):
    """A causal language model with ValueHeads on its last hidden states; a call returns Estimates."""

    def __init__(self, model: nn.Module, attention: str) -> None:
        super().__init__(model, attention)
        self.heads = new_heads(self.core).to(next(model.parameters()).dtype)

    def forward(  # type: ignore[override]
        self, tokens: Tensor, lengths: Tensor, positions: Tensor, log_probs: bool
    ) -> Estimates:
        """Estimates of the tokens at the flat ``positions`` (R,), in one pass of the model.

        Shapes are those of :class:`PolicyModel`. ``log_probs``: whether the language model's are computed too.
        """
        hidden, actions = self.hidden(tokens, lengths, predicting_positions(positions)), tokens[positions]
        head = self.core.get_output_embeddings()
        q, q_log_softmax = zip(*(q_head.score(hidden, actions) for q_head in self.heads.q), strict=True)
        with torch.no_grad():
            target_q = self.heads.smaller_target_q(hidden, actions)
        return Estimates(
            log_probs=head_log_probs(head, hidden, actions, 1.0, False)[0] if log_probs else None,
            q=torch.stack(q),
            q_log_softmax=torch.stack(q_log_softmax),
            target_q=target_q,
            values=self.heads.v(hidden).squeeze(-1).float(),
        )

    def comparable(self, tokens: Tensor, lengths: Tensor, positions: Tensor) -> Tensor:
        """The language model's log-probs (R,), by which packed and padded passes are compared."""
        return super().forward(tokens, lengths, positions)[0]


class GuidedHead(nn.Module):
    """The output layer of a guided language model: logits + beta Qhat, with the smaller target Q as Qhat.

    The paper's policy (section 4) is softmax(log pi + beta (Qhat - V)). V and the normaliser of log pi are the same for
    all tokens of a position, so the softmax does not depend on them.
    """

    def __init__(self, head: nn.Module, heads: ValueHeads, beta: float) -> None:
        super().__init__()
        self.head, self.heads, self.beta = head, heads, beta

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) float32 of hidden states (..., H)."""
        logits: Tensor = self.head(hidden)
        return logits.float() + self.beta * self.heads.smaller_target_q(hidden)


def new_heads(model: Any) -> ValueHeads:
    """New heads of a causal model's shape. Raises BadInput if the model changes logits after its output layer."""
    config = model.config.get_text_config()
    options = [name for name in LOGIT_OPTIONS if getattr(config, name, None) not in (None, 1, 1.0)]
    if options:
        raise BadInput(
            f"{type(model).__name__} changes logits after its output layer ({options[0]}); value heads need a model "
            "that does not"
        )
    return ValueHeads(config.hidden_size, config.vocab_size)


def guide_model(model: Any, path: str, beta: float) -> None:
    """Gives the causal ``model`` of a local directory a GuidedHead with the directory's value heads.

    Raises BadInput if the directory has no value heads.
    """
    heads = new_heads(model)
    if not heads.restore(path):
        raise BadInput(
            f"{path}: has no {HEADS_FILE}, and rollout.engine.guide needs value heads; train them with job: ilql, or "
            "set rollout.engine.guide to 0"
        )
    model.set_output_embeddings(GuidedHead(model.get_output_embeddings(), heads.to(model.device, model.dtype), beta))


def save_heads(tensors: dict[str, Tensor], directory: str) -> None:
    """Writes the state dict of :class:`ValueHeads` into a model directory."""
    file = Path(directory) / HEADS_FILE
    file.parent.mkdir()
    save_file(tensors, file)
