"""Encoder-decoders: targets are predicted from their sources; both run as padded rectangles."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .log_probs import rectangle
from .task_heads import PaddedHead


class Seq2SeqModel(PaddedHead):
    """A sequence is a source and its target end to end; the first ``source_lengths`` (B,) tokens are the source."""

    def forward(self, tokens: Tensor, lengths: Tensor, source_lengths: Tensor) -> Tensor:
        """Logits (R, V) float32 of the R target tokens among ``tokens`` (T,), in their order."""
        source, target = split_sides(tokens, lengths, source_lengths)
        ids, mask, _, _ = rectangle(source, source_lengths, source.new_zeros(0))
        positions = torch.arange(len(target), device=target.device)
        target_ids, _, row, column = rectangle(target, lengths - source_lengths, positions)
        start = torch.full_like(target_ids[:, :1], self.core.config.decoder_start_token_id)
        decoder_ids = torch.cat([start, target_ids[:, :-1]], 1)  # each target token is predicted from those before it
        out = self.model(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids, use_cache=False)
        return out.logits[row, column].float()

    @torch.no_grad()
    def translate(self, tokens: Tensor, lengths: Tensor, source_lengths: Tensor, max_new_tokens: int) -> list[Tensor]:
        """The greedy target (n,) of each source, with its end token, in at most ``max_new_tokens`` tokens.

        It is transformers' generate with the model's generation config, except for beams. At ZeRO-3 all ranks must call
        it together.
        """
        source, _ = split_sides(tokens, lengths, source_lengths)
        ids, mask, _, _ = rectangle(source, source_lengths, source.new_zeros(0))
        sharded = hasattr(next(self.parameters()), "ds_id")  # then a rank that is done goes on until all ranks are
        generated = self.core.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            synced_gpus=sharded,
        )
        eos = self.core.generation_config.eos_token_id
        return [until_end(row[1:], [eos] if isinstance(eos, int) else eos or []) for row in generated]


def split_sides(tokens: Tensor, lengths: Tensor, source_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The source tokens and the target tokens of ``tokens`` (T,), each flat, in the order of the sequences."""
    sequence = torch.repeat_interleave(torch.arange(len(lengths), device=tokens.device), lengths)
    starts = torch.cumsum(lengths, 0) - lengths
    is_target = torch.arange(len(tokens), device=tokens.device) - starts[sequence] >= source_lengths[sequence]
    return tokens[~is_target], tokens[is_target]


def until_end(row: Tensor, eos: Sequence[int]) -> Tensor:
    """The tokens of ``row`` (n,) up to the first that is one of ``eos``, and that one; all tokens if none is."""
    ends = torch.isin(row, torch.tensor(list(eos), device=row.device, dtype=row.dtype)).nonzero()
    return row[: int(ends[0]) + 1] if len(ends) else row
