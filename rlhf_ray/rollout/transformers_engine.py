"""The embedded engine: continuous batching over any causal language model of transformers.

Free rows are refilled as sequences finish. A prompt is prefilled once for all samples of its group. Each row's random
numbers come from the seed of its request, so they do not depend on the other rows.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models.offload import HostOffload, release_cached_memory
from .decoders import choose_decoder
from .engine import Completion, Counters, Request, Sampling

REFILL_SHARE = 8  # rows are refilled when one in 8 is free, since a prefill costs as much as a decode step


def uniform_numbers(seed: int, count: int) -> np.ndarray:
    """The random numbers (count,) float32 in [0, 1) of one request; the first ones do not depend on ``count``."""
    return np.random.Generator(np.random.Philox(seed)).random(count, dtype=np.float32)


def sample_tokens(
    logits: Tensor, temperature: float, uniform: Tensor, greedy: Sequence[bool], greedy_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """A token (B, 1) of each row's softmax(logits (B, V) / temperature), and its log-prob (B, 1).

    The token is the first whose cumulative probability exceeds the row's number ``uniform`` (B, 1), or the most likely
    one if the row is ``greedy``. ``greedy_mask`` (B, 1) is ``greedy`` on the device.

    Example: probabilities 0.5, 0.3, 0.2 have the cumulative sums 0.5, 0.8, 1.0; the number 0.6 gives token 1.
    """
    probability = torch.softmax(logits.float() / temperature, -1)
    if all(greedy):
        token = logits.argmax(-1, keepdim=True)
    else:
        cumulative = probability.cumsum(-1)
        total = cumulative[:, -1:]  # the target stays below it, so rounding never selects a last token of probability 0
        target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
        token = torch.searchsorted(cumulative, target, right=True).clamp_(max=logits.shape[-1] - 1)
        if any(greedy):
            token = torch.where(greedy_mask, logits.argmax(-1, keepdim=True), token)
    return token, probability.gather(1, token).log_()


class TransformersEngine:
    """Implements Engine for ``model`` (a causal LM in eval mode on ``device``), at most ``max_rows`` sequences at a
    time.

    Row r of every tensor below belongs to the request ``self.rows[r]``.
    """

    def __init__(self, model: Any, sampling: Sampling, max_rows: int, device: torch.device) -> None:
        self.model, self.sampling, self.max_rows, self.device = model, sampling, max_rows, device
        self.weights = HostOffload(lambda: [*model.parameters(), *model.buffers()])
        self.decoder, self.decoding = choose_decoder(model, max_rows, device)
        self.waiting: deque[Request] = deque()
        self.rows: list[Request] = []
        shape = (max_rows, sampling.max_new_tokens)
        self.tokens = torch.zeros(shape, dtype=torch.long, device=device)
        self.token_log_probs = torch.zeros(shape, device=device)
        self.uniform = torch.zeros(shape, device=device)
        self.greedy = torch.zeros(max_rows, dtype=torch.bool, device=device)
        self.count = torch.zeros(max_rows, dtype=torch.long, device=device)
        self.limit = torch.zeros(max_rows, dtype=torch.long, device=device)
        self.eos = torch.tensor(sampling.eos_token_ids, device=device)
        self.counters = Counters(max_rows)

    @property
    def busy(self) -> bool:
        return bool(self.rows or self.waiting)

    def add(self, requests: Sequence[Request]) -> None:
        self.waiting.extend(requests)

    @torch.no_grad()
    def step(self) -> list[Completion]:
        began = time.monotonic()
        alive = len(self.rows)
        if alive:
            last = self.tokens[:alive].gather(1, self.count[:alive, None] - 1).squeeze(1)
            self._sample(self.decoder.step(last), 0)
        self._refill()
        finished = self._take_finished()
        self.counters.count_step(len(self.rows) + len(finished), time.monotonic() - began, finished)
        return finished

    def _refill(self) -> None:
        """Fills free rows from the queue if they are worth a prefill.

        Neighbours with the same prompt share its prefill.
        """
        free = min(self.max_rows - len(self.rows), len(self.waiting))
        enough = min(len(self.waiting), self.max_rows // REFILL_SHARE if self.rows else 1)
        if not free or free < enough:
            return
        requests = [self.waiting.popleft() for _ in range(free)]
        prompts: list[np.ndarray] = []
        copies: list[int] = []
        for i, request in enumerate(requests):
            last = requests[i - 1] if i else None
            if last is not None and request.group == last.group and np.array_equal(request.prompt, last.prompt):
                copies[-1] += 1
            else:
                prompts.append(request.prompt)
                copies.append(1)
        first = len(self.rows)
        max_length = 0
        for row, request in enumerate(requests, first):
            limit = request.limit(self.sampling)
            self.uniform[row, :limit] = torch.as_tensor(uniform_numbers(request.seed, limit), device=self.device)
            self.greedy[row], self.count[row], self.limit[row] = request.greedy, 0, limit
            max_length = max(max_length, len(request.prompt) + limit)
        self.rows.extend(requests)
        self._sample(self.decoder.prefill(prompts, copies, first, max_length), first)

    def _sample(self, logits: Tensor, first: int) -> None:
        """Samples the next token of the rows from ``first`` on, each by its next uniform number."""
        rows = slice(first, first + len(logits))
        column = self.count[rows, None]
        greedy = [r.greedy for r in self.rows[rows]]
        uniform = self.uniform[rows].gather(1, column)
        token, log_prob = sample_tokens(logits, self.sampling.temperature, uniform, greedy, self.greedy[rows, None])
        self.tokens[rows].scatter_(1, column, token)
        self.token_log_probs[rows].scatter_(1, column, log_prob)
        self.count[rows] += 1

    def _take_finished(self) -> list[Completion]:
        """The completions of the rows that are done; frees these rows."""
        alive = len(self.rows)
        last = self.tokens[:alive].gather(1, self.count[:alive, None] - 1)
        ended = (last == self.eos).any(1)
        done = (ended | (self.count[:alive] >= self.limit[:alive])).nonzero().squeeze(1).tolist()
        if not done:
            return []
        finished = []
        for row in done:
            n = int(self.count[row])
            tokens, log_probs = (x[row, :n].cpu().numpy() for x in (self.tokens, self.token_log_probs))
            truncated = not bool(ended[row])
            finished.append(Completion(self.rows[row].id, tokens.astype(np.int32), log_probs.copy(), truncated))
        self._free_rows(done)
        return finished

    def _free_rows(self, done: list[int]) -> None:
        """Moves the last live rows over the rows that are ``done``, so that live rows come first.

        Example: of rows 0 to 4, rows 1 and 4 are done; row 3 moves to row 1, and rows 0 to 2 are alive.
        """
        alive = len(self.rows) - len(done)
        target = [r for r in done if r < alive]
        source = [r for r in range(alive, len(self.rows)) if r not in set(done)]
        if target:
            self.decoder.move(source, target)
            for state in (self.tokens, self.token_log_probs, self.uniform, self.greedy, self.count, self.limit):
                state[target] = state[source]
            for s, t in zip(source, target, strict=True):
                self.rows[t] = self.rows[s]
        del self.rows[alive:]

    @torch.no_grad()
    def load_weights(self, named: Iterable[tuple[str, Tensor]]) -> None:
        if self.busy:
            raise RuntimeError("weights cannot change while requests are unfinished")
        parameters = self.model.state_dict(keep_vars=True)
        missing = {name for name, _ in self.model.named_parameters()}
        for name, tensor in named:
            if name not in parameters:
                raise ValueError(f"the model has no parameter '{name}'")
            if parameters[name].shape != tensor.shape:
                raise ValueError(
                    f"'{name}' has shape {tuple(tensor.shape)}, the model's has {tuple(parameters[name].shape)}"
                )
            if self.device.type == "cpu" and tensor.dtype == parameters[name].dtype:
                parameters[name].data = tensor  # shared memory: all workers of a node read one copy of the weights
            else:
                parameters[name].copy_(tensor)
            missing.discard(name)
        if missing:
            raise ValueError(f"no tensor for {', '.join(sorted(missing)[:3])} ({len(missing)} in all)")

    @torch.no_grad()
    def log_probs(self, tokens: np.ndarray) -> np.ndarray:
        ids = torch.as_tensor(tokens.astype(np.int64), device=self.device)
        logits = self.model(input_ids=ids[None, :-1], use_cache=False).logits[0].float()
        log_probs = (logits / self.sampling.temperature).log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)
        return np.concatenate([np.zeros(1, np.float32), log_probs.cpu().numpy()])

    def take_counters(self) -> dict[str, float]:
        return self.counters.take()

    def keep_awake(self, parts: Collection[str], keep_weights: bool = True) -> None:
        if "kv_cache" not in parts:
            self.decoder.free()  # it is made again by the next request
        self.weights.wake() if "weights" in parts else self.weights.sleep()
        release_cached_memory(self.device)
