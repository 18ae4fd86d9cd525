"""Token log-probabilities, entropies and scalars of ragged sequences.

``log_probs[i]`` belongs to predicting token i from the tokens before it, and so do ``values[i]``: both are read from
the hidden state of position i - 1.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .attention import NAME as PACKED
from .attention import UnsupportedModel, require_plain_layers
from .packing import pack
from .positions import predicting_positions
from .token_head import head_log_probs, scoring_head, token_log_probs
from .tolerance import PACKED_FORWARD, dtype_name


class Ragged(nn.Module):
    """Runs a transformers model on ragged sequences, packed into one row or padded into a rectangle.

    ``attention``: 'packed', 'padded', or 'auto', which compares the two at load (:meth:`check`). ``padded_reason`` says
    why a check has chosen the padded path.
    """

    padded_reason = ""

    def __init__(self, model: nn.Module, attention: str) -> None:
        super().__init__()
        self.model = model
        self.plain = getattr(model.config, "_attn_implementation", "sdpa")
        self.packed = attention != "padded"
        if self.packed:
            self._switch(PACKED)

    @property
    def core(self) -> Any:
        """The transformers model itself, under an adapter where there is one."""
        model: Any = self.model
        return model.get_base_model() if hasattr(model, "peft_config") else model

    @property
    def embedding_width(self) -> int:
        """Numbers of a token's embedding."""
        return int(self.core.get_input_embeddings().embedding_dim)

    @contextlib.contextmanager
    def _noisy(self, noise: Tensor | None) -> Iterator[None]:
        """Adds ``noise``, in the layout of the input ids, to the embeddings while the block runs."""
        if noise is None:
            yield
            return
        embeddings = self.core.get_input_embeddings()
        hook = embeddings.register_forward_hook(lambda _, __, embedded: embedded + noise.to(embedded.dtype))
        try:
            yield
        finally:
            hook.remove()

    def hidden(
        self,
        tokens: Tensor,
        lengths: Tensor,
        positions: Tensor,
        shared: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states (R, H) at the flat ``positions`` (R,) of ``tokens`` (T,), sequences of ``lengths`` (B,).

        ``shared`` (B,) leading tokens that a sequence has in common with the one before it are computed once. ``noise``
        (T, width) is added to the embeddings (shared tokens get that of the sequence they are computed in).
        """
        body = self.core.base_model
        if self.packed:
            packing = pack(lengths, shared)
            with self._noisy(None if noise is None else noise[packing.source][None]):
                out = body(
                    input_ids=tokens[packing.source][None],
                    position_ids=packing.positions[None],
                    sequence_lengths=packing.lengths,
                    sequence_prefixes=packing.prefixes,
                    use_cache=False,
                    return_dict=True,
                )
            return out.last_hidden_state[0, packing.index[positions]]
        ids, mask, row, column = rectangle(tokens, lengths, positions)
        with self._noisy(None if noise is None else padded(noise, lengths)):
            out = body(input_ids=ids, attention_mask=mask, use_cache=False, return_dict=True)
        return out.last_hidden_state[row, column]

    def _switch(self, implementation: str) -> None:
        self.core.set_attn_implementation(implementation)

    def use_padded(self) -> None:
        """Takes the padded path from now on."""
        self.packed = False
        self._switch(self.plain)

    def comparable(self, tokens: Tensor, lengths: Tensor, positions: Tensor) -> Tensor:
        """What :meth:`check` compares: hidden states (R, H) of length 1, since a scalar head may start at zero."""
        return nn.functional.normalize(self.hidden(tokens, lengths, positions).float(), dim=-1)

    @torch.no_grad()
    def check(self, vocab_size: int) -> float:
        """Compares a packed pass over two sequences with a pass over each; if they differ, the padded path is taken.

        Returns the largest difference, in nats for a policy; infinite if the model cannot run packed.
        """
        first = next(self.parameters())
        device, tolerance = first.device, PACKED_FORWARD[dtype_name(first.dtype)]
        draw = torch.Generator().manual_seed(0)
        lengths = torch.tensor([7, 12])
        tokens = torch.randint(0, vocab_size, (19,), generator=draw).to(device)
        positions = torch.tensor([*range(1, 7), *range(8, 19)], device=device)
        try:
            require_plain_layers(self.core, "packed attention")
            self._require_sequence_lengths()
            packed = self.comparable(tokens, lengths.to(device), positions)
        except UnsupportedModel as error:
            self.padded_reason = str(error)
            self.use_padded()
            return float("inf")
        self.use_padded()
        alone = torch.cat(
            [
                self.comparable(tokens[:7], lengths[:1].to(device), torch.arange(1, 7, device=device)),
                self.comparable(tokens[7:], lengths[1:].to(device), torch.arange(1, 12, device=device)),
            ]
        )
        difference = float((packed - alone).view(len(positions), -1).norm(dim=-1).max())
        if difference <= tolerance:
            self.packed = True
            self._switch(PACKED)
        else:
            self.padded_reason = f"packed and one-by-one passes differ by {difference:.2g}"
        return difference

    def _require_sequence_lengths(self) -> None:
        """Raises UnsupportedModel if the model's forward does not take what packed attention needs."""
        body = self.core.base_model
        parameters = inspect.signature(body.forward).parameters.values()
        if not any(p.kind is p.VAR_KEYWORD or p.name == "sequence_lengths" for p in parameters):
            raise UnsupportedModel(f"{type(body).__name__} does not take keyword arguments for its attention")


class PolicyModel(Ragged):
    """A causal language model as a function from ragged sequences to log-probs."""

    def __init__(self, model: nn.Module, attention: str) -> None:
        super().__init__(model, attention)
        scoring_head(self.core.get_output_embeddings())

    def forward(
        self,
        tokens: Tensor,
        lengths: Tensor,
        positions: Tensor,
        temperature: float = 1.0,
        entropy_grad: bool = False,
        shared: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies (R,) float32, in nats, of the tokens at the flat ``positions`` (R,).

        ``tokens`` (T,) int64, ``lengths`` (B,) int64 with sum T. No position is a sequence's first. The head runs on
        these positions only, in chunks, so that no (T, vocabulary) tensor is kept. The entropy carries a gradient only
        if ``entropy_grad``, and is NaN if no gradient is taken at all (:func:`head_log_probs`). ``shared`` and
        ``noise`` are those of :meth:`hidden`.
        """
        if self.packed:
            return head_log_probs(
                self.core.get_output_embeddings(),
                self.hidden(tokens, lengths, predicting_positions(positions), shared, noise),
                tokens[positions],
                temperature,
                entropy_grad,
            )
        ids, mask, row, column = rectangle(tokens, lengths, predicting_positions(positions))
        with self._noisy(None if noise is None else padded(noise, lengths)):
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[row, column]
        return token_log_probs(logits, tokens[positions], temperature, entropy_grad)

    def comparable(self, tokens: Tensor, lengths: Tensor, positions: Tensor) -> Tensor:
        """Log-probs (R,): the head is part of what may differ."""
        return self.forward(tokens, lengths, positions)[0]


class ScalarModel(Ragged):
    """A sequence-classification model with one logit, read wherever it is asked for: critic or reward model."""

    def forward(self, tokens: Tensor, lengths: Tensor, positions: Tensor, shared: Tensor | None = None) -> Tensor:
        """Scalars (R,) float32 read from the hidden states at the flat ``positions`` (R,)."""
        return self.core.score(self.hidden(tokens, lengths, positions, shared)).squeeze(-1).float()


def rectangle(tokens: Tensor, lengths: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Right-padded ids and mask (B, S), and the rows and columns of the flat ``positions``."""
    rows = torch.repeat_interleave(torch.arange(len(lengths), device=tokens.device), lengths)
    starts = torch.cumsum(lengths, 0) - lengths
    columns = torch.arange(len(tokens), device=tokens.device) - starts[rows]
    ids = tokens.new_zeros(len(lengths), int(lengths.max()))
    mask = torch.zeros_like(ids)
    ids[rows, columns] = tokens
    mask[rows, columns] = 1
    return ids, mask, rows[positions], columns[positions]


def padded(values: Tensor, lengths: Tensor) -> Tensor:
    """(B, S, D): flat ``values`` (T, D) of sequences of ``lengths`` (B,), right-padded with zeros."""
    return nn.utils.rnn.pad_sequence(list(values.split(lengths.tolist())), batch_first=True)
