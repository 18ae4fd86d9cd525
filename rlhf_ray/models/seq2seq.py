"""Encoder-decoders: a source is read whole, and a target is predicted token by token. Both sides run as padded rectangles."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .log_probs import rectangle
from .task_heads import PaddedHead


class Seq2SeqModel(PaddedHead):
    """A sequence is a source and its target end to end; ``sources`` (B,) are the sources' lengths."""

    def forward(self, tokens: Tensor, lengths: Tensor, sources: Tensor) -> Tensor:
        """Logits (R, V) float32 of the R target tokens among ``tokens`` (T,), in their order."""
        source, target = sides(tokens, lengths, sources)
        ids, mask, _, _ = rectangle(source, sources, source.new_zeros(0))
        wanted, _, row, column = rectangle(target, lengths - sources, torch.arange(len(target), device=target.device))
        start = torch.full_like(wanted[:, :1], self.core.config.decoder_start_token_id)
        given = torch.cat([start, wanted[:, :-1]], 1)
        out = self.model(input_ids=ids, attention_mask=mask, decoder_input_ids=given, use_cache=False)
        return out.logits[row, column].float()

    @torch.no_grad()
    def translate(self, tokens: Tensor, lengths: Tensor, sources: Tensor, longest: int) -> list[Tensor]:
        """The greedy target of each source, its end token included, at most ``longest`` tokens: transformers' own generate with
        what the model's generation config says, but for beams. At ZeRO-3 all ranks must call."""
        source, _ = sides(tokens, lengths, sources)
        ids, mask, _, _ = rectangle(source, sources, source.new_zeros(0))
        sharded = hasattr(next(self.parameters()), "ds_id")  # then who is done goes on until all ranks are
        found = self.core.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=longest, do_sample=False, num_beams=1, synced_gpus=sharded
        )  # fmt: skip
        end = self.core.generation_config.eos_token_id
        return [until_end(row[1:], [end] if isinstance(end, int) else end or []) for row in found]


def sides(tokens: Tensor, lengths: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
    """The source tokens and the target tokens of ``tokens`` (T,), each flat, in the order of the sequences."""
    row = torch.repeat_interleave(torch.arange(len(lengths), device=tokens.device), lengths)
    place = torch.arange(len(tokens), device=tokens.device) - (torch.cumsum(lengths, 0) - lengths)[row]
    target = place >= sources[row]
    return tokens[~target], tokens[target]


def until_end(row: Tensor, eos: Sequence[int]) -> Tensor:
    """The tokens (n,) up to and with the first that is one of ``eos``; all of them where none is."""
    ends = torch.isin(row, torch.tensor(list(eos), device=row.device, dtype=row.dtype)).nonzero()
    return row[: int(ends[0]) + 1] if len(ends) else row
