"""Answers of encoder-decoders, with transformers' generate a batch at a time: for evaluation and sampling, not for training."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from ..models.log_probs import rectangle
from ..models.seq2seq import until_end
from .engine import Completion, Counters, Request, Sampling
from .transformers_engine import draw


class Drawn(LogitsProcessor):
    """Leaves each row one token that can be chosen: its own draw, or the likeliest; ``log_probs`` are theirs, (B, 1) a step."""

    def __init__(self, requests: Sequence[Request], sampling: Sampling, device: torch.device) -> None:
        limit = sampling.max_new_tokens
        numbers = [np.random.Generator(np.random.Philox(r.seed)).random(limit, dtype=np.float32) for r in requests]
        self.uniform = torch.tensor(np.stack(numbers), device=device)
        self.greedy = [r.greedy for r in requests]
        self.marks = torch.tensor(self.greedy, device=device)[:, None]
        self.temperature = sampling.temperature
        self.log_probs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        at = len(self.log_probs)
        token, log_prob = draw(scores, self.temperature, self.uniform[:, at : at + 1], self.greedy, self.marks)
        self.log_probs.append(log_prob)
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


class Seq2SeqEngine:
    """Implements Engine for ``model`` (an encoder-decoder in eval mode on ``device``): a step answers up to ``max_rows`` requests.

    What the model's generation config says is kept, but for beams and sampling. Weights come from its directory alone: RL on
    encoder-decoders is refused before anything starts, so nothing syncs them.
    """

    def __init__(self, model: Any, sampling: Sampling, max_rows: int, device: torch.device) -> None:
        self.model, self.sampling, self.max_rows, self.device = model, sampling, max_rows, device
        self.waiting: deque[Request] = deque()
        self.counters = Counters(max_rows)

    @property
    def busy(self) -> bool:
        return bool(self.waiting)

    def add(self, requests: Sequence[Request]) -> None:
        self.waiting.extend(requests)

    @torch.no_grad()
    def step(self) -> list[Completion]:
        began = time.monotonic()
        rows = [self.waiting.popleft() for _ in range(min(self.max_rows, len(self.waiting)))]
        flat = torch.tensor(np.concatenate([r.prompt for r in rows]), device=self.device).long()
        lengths = torch.tensor([len(r.prompt) for r in rows], device=self.device)
        ids, mask, _, _ = rectangle(flat, lengths, flat.new_zeros(0))
        drawn, ends = Drawn(rows, self.sampling, self.device), self.sampling.eos_token_ids
        found = self.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=self.sampling.max_new_tokens, do_sample=False, num_beams=1,
            eos_token_id=list(ends), logits_processor=LogitsProcessorList([drawn]),
        )[:, 1:].cpu()  # fmt: skip
        log_probs = torch.cat(drawn.log_probs, 1).cpu().numpy()
        finished = []
        for request, row, log_prob in zip(rows, found, log_probs, strict=True):
            tokens = until_end(row, ends).numpy().astype(np.int32)
            finished.append(Completion(request.id, tokens, log_prob[: len(tokens)], int(tokens[-1]) not in ends))
        self.counters.step(len(rows), time.monotonic() - began, finished)
        return finished

    def load_weights(self, named: Iterable[tuple[str, Tensor]]) -> None:
        raise NotImplementedError("the weights of an encoder-decoder are those of its directory")

    def log_probs(self, tokens: np.ndarray) -> np.ndarray:
        raise NotImplementedError("a sequence alone does not say where an encoder-decoder's source ends")

    def take_counters(self) -> dict[str, float]:
        return self.counters.take()

    def sleep(self) -> None:
        self.model.to("cpu")

    def wake(self) -> None:
        self.model.to(self.device)
