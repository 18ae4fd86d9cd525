"""Decoders give an engine the next token's logits; the choice of the fastest one.

A model decodes with a KV cache if the log-probs equal those of its own forward pass. On a GPU a decode step runs as a
CUDA graph if it can be captured. Any other causal model recomputes the whole prefix for every token, which is slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..models.attention import UnsupportedModel
from ..models.tolerance import CACHED_DECODING, dtype_name
from .engine import Decoding
from .kv_cache import CachedDecoder

CHECKED_PROMPTS = (3, 6)  # lengths of the two prompts on which a cached decoder is compared with the plain model
WIDE_WINDOW = 64  # tokens; the comparison's steps do not go past a sliding window above this


class Decoder(Protocol):
    """Rows 0 to n - 1 are alive. Logits are (rows, V), for the next token of each row."""

    def prefill(self, prompts: Sequence[np.ndarray], copies: Sequence[int], first: int, max_length: int) -> Tensor:
        """Computes each of the distinct ``prompts`` once and fills ``copies`` rows with it, from row ``first`` on.

        ``max_length`` is the most tokens that one of these rows will have, its prompt included. Returns their logits.
        """
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Appends ``tokens`` (n,), one to each live row. The logits are valid until the next step."""
        ...

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copies rows ``source`` over the finished rows ``target``."""
        ...

    def free(self) -> None:
        """Releases device memory. No row may be alive."""
        ...


class RecomputingDecoder:
    """No cache: it computes the whole prefix again for every token. Correct for any causal model, and slow."""

    def __init__(self, model: Any, max_rows: int, device: torch.device) -> None:
        self.model, self.device = model, device
        self.rows: list[list[int]] = [[] for _ in range(max_rows)]

    def prefill(self, prompts: Sequence[np.ndarray], copies: Sequence[int], first: int, max_length: int) -> Tensor:
        filled = [prompt.tolist() for prompt, count in zip(prompts, copies, strict=True) for _ in range(count)]
        self.rows[first : first + len(filled)] = filled
        return self._logits(self.rows[first : first + len(filled)])

    def step(self, tokens: Tensor) -> Tensor:
        live = self.rows[: len(tokens)]
        for row, token in zip(live, tokens.tolist(), strict=True):
            row.append(token)
        return self._logits(live)

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        for s, t in zip(source, target, strict=True):
            self.rows[t] = list(self.rows[s])

    def free(self) -> None:
        """Does nothing: between steps there is no device memory to release."""

    def _logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        lengths = [len(row) for row in rows]
        ids = torch.zeros(len(rows), max(lengths), dtype=torch.long, device=self.device)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, device=self.device)
            mask[i, : len(row)] = 1
        logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        last = torch.tensor(lengths, device=self.device) - 1
        return logits[torch.arange(len(rows), device=self.device), last]


def choose_decoder(model: Any, max_rows: int, device: torch.device) -> tuple[Decoder, Decoding]:
    """The fastest decoder with the log-probs of ``model``'s own forward pass, and the reason if it is a slow one.

    A candidate is skipped only if it raises UnsupportedModel or its log-probs differ; other errors propagate.
    """
    plain_attention = getattr(model.config, "_attn_implementation", "sdpa")
    tolerance = CACHED_DECODING[dtype_name(model.dtype)]
    reason = ""
    for graphed in (True, False) if device.type == "cuda" else (False,):
        try:
            decoder = CachedDecoder(model, max_rows, device, graphed)
            difference = largest_difference(decoder)
        except UnsupportedModel as error:
            reason = str(error)
        else:
            if difference <= tolerance:
                decoder.free()
                name = "CUDA graphs" if graphed else "KV cache"
                slow = f"{type(model).__name__}: decoding without CUDA graphs: {reason}" if reason else ""
                return decoder, Decoding(name, slow)
            reason = f"log-probs with a KV cache differ from the plain model's by {difference:.2g} nats"
        model.set_attn_implementation(plain_attention)
    slow = f"{type(model).__name__}: decoding without a KV cache, which is slow: {reason}"
    return RecomputingDecoder(model, max_rows, device), Decoding("recomputation", slow)


@torch.no_grad()
def largest_difference(decoder: CachedDecoder) -> float:
    """Largest difference in nats of next-token log-probs, cached against plain, on two sequences of different length.

    The sequences go a few tokens past a small sliding window.
    """
    model, device = decoder.model, decoder.device
    window = decoder.window or 0
    steps = 4 if window > WIDE_WINDOW else window + 4
    rng = np.random.default_rng(0)
    vocab_size = model.config.get_text_config().vocab_size
    lengths = CHECKED_PROMPTS[: decoder.max_rows]
    sequences = [torch.as_tensor(rng.integers(0, vocab_size, n + steps), device=device) for n in lengths]
    prompts = [ids[:-steps].cpu().numpy() for ids in sequences]
    logits = [decoder.prefill(prompts, [1] * len(prompts), 0, max(lengths) + steps)]
    for step in range(steps, 0, -1):
        tokens = torch.stack([ids[-step] for ids in sequences])
        logits.append(decoder.step(tokens).clone())  # a graph's output is overwritten by its next replay
    cached = torch.stack(logits, 1).float().log_softmax(-1)
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")
    largest = 0.0
    for row, ids in enumerate(sequences):
        plain = model(input_ids=ids[None], use_cache=False).logits[0, -steps - 1 :].float().log_softmax(-1)
        largest = max(largest, float((plain - cached[row]).abs().max()))
    model.set_attn_implementation(attention)
    return largest
