"""Seq2SeqEngine: generation with encoder-decoders, a batch at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from ..models.log_probs import rectangle
from ..models.offload import HostOffload, release_cached_memory
from ..models.seq2seq import until_end
from .engine import Completion, Counters, Decoding, Request, Sampling
from .transformers_engine import sample_tokens, uniform_numbers


class SeededSampling(LogitsProcessor):
    """Chooses a token for each row, sampled or the most likely, and gives all others a score of minus infinity.

    ``log_probs`` has one (B, 1) tensor for each step: the log-probs of these tokens.
    """

    def __init__(self, requests: Sequence[Request], sampling: Sampling, device: torch.device) -> None:
        numbers = [uniform_numbers(r.seed, sampling.max_new_tokens) for r in requests]
        self.uniform = torch.tensor(np.stack(numbers), device=device)
        self.greedy = [r.greedy for r in requests]
        self.greedy_mask = torch.tensor(self.greedy, device=device)[:, None]
        self.temperature = sampling.temperature
        self.log_probs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = len(self.log_probs)
        uniform = self.uniform[:, step : step + 1]
        token, log_prob = sample_tokens(scores, self.temperature, uniform, self.greedy, self.greedy_mask)
        self.log_probs.append(log_prob)
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


class Seq2SeqEngine:
    """Implements Engine for ``model`` (an encoder-decoder in eval mode on ``device``) with transformers' generate.

    One step generates the whole responses of up to ``max_rows`` requests. The model's generation config applies, except
    for beams and sampling. Weights come from the model's directory only: preflight refuses RL on encoder-decoders, so
    there are no weight syncs.
    """

    decoding = Decoding("generate")

    def __init__(self, model: Any, sampling: Sampling, max_rows: int, device: torch.device) -> None:
        self.model, self.sampling, self.max_rows, self.device = model, sampling, max_rows, device
        self.weights = HostOffload(lambda: [*model.parameters(), *model.buffers()])
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
        eos, sampler = self.sampling.eos_token_ids, SeededSampling(rows, self.sampling, self.device)
        generated = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=self.sampling.max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=list(eos),
            logits_processor=LogitsProcessorList([sampler]),
        )
        responses = generated[:, 1:].cpu()  # without the token that starts the decoder
        log_probs = torch.cat(sampler.log_probs, 1).cpu().numpy()
        finished = []
        for request, response, log_prob in zip(rows, responses, log_probs, strict=True):
            tokens = until_end(response, eos).numpy().astype(np.int32)
            truncated = int(tokens[-1]) not in eos
            finished.append(Completion(request.id, tokens, log_prob[: len(tokens)], truncated))
        self.counters.count_step(len(rows), time.monotonic() - began, finished)
        return finished

    def load_weights(self, named: Iterable[tuple[str, Tensor]]) -> None:
        raise NotImplementedError("an encoder-decoder's weights come from its directory only")

    def log_probs(self, tokens: np.ndarray) -> np.ndarray:
        raise NotImplementedError("an encoder-decoder needs the source's length, which a sequence does not have")

    def take_counters(self) -> dict[str, float]:
        return self.counters.take()

    def keep_awake(self, parts: Collection[str], keep_weights: bool = True) -> None:
        self.weights.wake() if "weights" in parts else self.weights.sleep()
        release_cached_memory(self.device)
