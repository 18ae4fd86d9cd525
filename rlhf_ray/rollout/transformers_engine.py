"""The embedded engine: continuous batching over any causal LM of transformers, wherever torch runs.

Rows are refilled as sequences finish, a prompt is prefilled once for all samples of its group, and each row's random
numbers come from its own seed, so that they do not depend on what shares the batch.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .engine import Completion, Counters, Request, Sampling
from .kv_cache import CachedDecoder, RecomputingDecoder

log = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.3}
UNSUITED = (ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError)
ADMIT_SHARE = 8  # rows are refilled when one in so many is free: a prefill costs as much as a decode step


def draw(
    logits: Tensor, temperature: float, uniform: Tensor, greedy: Sequence[bool], marks: Tensor
) -> tuple[Tensor, Tensor]:
    """A token (B, 1) of each row's softmax(logits (B, V) / temperature), and its log-prob (B, 1): where the cumulative softmax
    reaches the row's number ``uniform`` (B, 1), or the likeliest where ``greedy``; ``marks`` (B, 1) is the same on the device."""
    probability = torch.softmax(logits.float() / temperature, -1)
    if all(greedy):
        token = logits.argmax(-1, keepdim=True)
    else:
        mass = probability.cumsum(-1)
        total = mass[:, -1:]  # below it, so that rounding cannot reach a last token of probability 0
        below = torch.nextafter(total, torch.zeros_like(total))
        target = torch.minimum(uniform * total, below)
        token = torch.searchsorted(mass, target, right=True).clamp_(max=logits.shape[-1] - 1)
        if any(greedy):
            token = torch.where(marks, logits.argmax(-1, keepdim=True), token)
    return token, probability.gather(1, token).log_()


class TransformersEngine:
    """Implements Engine for ``model`` (a causal LM in eval mode on ``device``), at most ``max_rows`` sequences at a time."""

    def __init__(self, model: Any, sampling: Sampling, max_rows: int, device: torch.device) -> None:
        self.model, self.sampling, self.max_rows, self.device = model, sampling, max_rows, device
        self.decoder: Any = self._decoder()
        self.waiting: deque[Request] = deque()
        self.rows: list[Request] = []
        shape = (max_rows, sampling.max_new_tokens)
        self.tokens = torch.zeros(shape, dtype=torch.long, device=device)
        self.chosen = torch.zeros(shape, device=device)
        self.uniform = torch.zeros(shape, device=device)
        self.greedy = torch.zeros(max_rows, dtype=torch.bool, device=device)
        self.count = torch.zeros(max_rows, dtype=torch.long, device=device)
        self.limit = torch.zeros(max_rows, dtype=torch.long, device=device)
        self.eos = torch.tensor(sampling.eos_token_ids, device=device)
        self.counters = Counters(max_rows)

    def _decoder(self) -> Any:
        """The cached decoder where it gives the model's own log-probs on two ragged sequences, on a GPU as CUDA graphs where the
        model can be captured; else the recomputing one."""
        plain = getattr(self.model.config, "_attn_implementation", "sdpa")
        reason = ""
        for graphed in (True, False) if self.device.type == "cuda" else (False,):
            try:
                cached = CachedDecoder(self.model, self.max_rows, self.device, graphed)
                difference = self._disagreement(cached)
                if difference <= TOLERANCE[self.model.dtype]:
                    cached.drop()
                    return cached
                reason = f"cached and plain logits differ by {difference:.2g}"
            except UNSUITED as error:
                reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            if graphed:
                log.warning("%s: decoding without CUDA graphs (%s)", type(self.model).__name__, reason)
            self.model.set_attn_implementation(plain)
        log.warning("%s: decoding without a cache, which is slow (%s)", type(self.model).__name__, reason)
        return RecomputingDecoder(self.model, self.max_rows, self.device)

    @torch.no_grad()
    def _disagreement(self, cached: CachedDecoder) -> float:
        """Largest difference of next-token log-probs, cached against plain, past any small sliding window."""
        window = cached.window or 0
        steps = 4 if window > 64 else window + 4
        draw = np.random.default_rng(0)
        size = self.model.config.get_text_config().vocab_size
        both = [draw.integers(0, size, n + steps) for n in (3, 6)][: self.max_rows]
        plain = self.model.config._attn_implementation
        logits = [cached.admit([s[:-steps] for s in both], [1] * len(both), 0, 8 + steps)]
        for i in range(steps):
            token = torch.tensor([int(s[len(s) - steps + i]) for s in both], device=self.device)
            logits.append(cached.step(token).clone())  # a graph's output lasts until its next replay
        self.model.set_attn_implementation("eager")
        worst = 0.0
        for row, sequence in enumerate(both):
            ids = torch.as_tensor(sequence, device=self.device)[None]
            whole = self.model(input_ids=ids, use_cache=False).logits[0, -steps - 1 :].float().log_softmax(-1)
            found = torch.stack([part[row] for part in logits]).float().log_softmax(-1)
            worst = max(worst, float((whole - found).abs().max()))
        self.model.set_attn_implementation(plain)
        return worst

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
        self._admit()
        finished = self._finish()
        self.counters.step(len(self.rows) + len(finished), time.monotonic() - began, finished)
        return finished

    def _admit(self) -> None:
        """Fills free rows from the queue once they are worth a prefill; neighbours that share a prompt share it."""
        free = min(self.max_rows - len(self.rows), len(self.waiting))
        if free < min(len(self.waiting), self.max_rows // ADMIT_SHARE if self.rows else 1) or not free:
            return
        new = [self.waiting.popleft() for _ in range(free)]
        prompts: list[np.ndarray] = []
        copies: list[int] = []
        for i, request in enumerate(new):
            if i and request.group == new[i - 1].group and np.array_equal(request.prompt, new[i - 1].prompt):
                copies[-1] += 1
            else:
                prompts.append(request.prompt)
                copies.append(1)
        first = len(self.rows)
        room = 0
        for row, request in enumerate(new, first):
            limit = min(request.max_new_tokens or self.sampling.max_new_tokens, self.sampling.max_new_tokens)
            draw = np.random.Generator(np.random.Philox(request.seed)).random(limit, dtype=np.float32)
            self.uniform[row, :limit] = torch.as_tensor(draw, device=self.device)
            self.greedy[row], self.count[row], self.limit[row] = request.greedy, 0, limit
            room = max(room, len(request.prompt) + limit)
        self.rows.extend(new)
        self._sample(self.decoder.admit(prompts, copies, first, room), first)

    def _sample(self, logits: Tensor, first: int) -> None:
        """The next token of rows from ``first`` on: inverse of the cumulative softmax at the row's own uniform number."""
        rows = slice(first, first + len(logits))
        at = self.count[rows, None]
        greedy = [r.greedy for r in self.rows[rows]]
        uniform = self.uniform[rows].gather(1, at)
        token, log_prob = draw(logits, self.sampling.temperature, uniform, greedy, self.greedy[rows, None])
        self.tokens[rows].scatter_(1, at, token)
        self.chosen[rows].scatter_(1, at, log_prob)
        self.count[rows] += 1

    def _finish(self) -> list[Completion]:
        """Takes finished rows out and moves the last live ones into their places."""
        alive = len(self.rows)
        last = self.tokens[:alive].gather(1, self.count[:alive, None] - 1)
        ended = (last == self.eos).any(1)
        over = (ended | (self.count[:alive] >= self.limit[:alive])).nonzero().squeeze(1).tolist()
        if not over:
            return []
        finished = []
        for row in over:
            n = int(self.count[row])
            tokens, log_probs = (x[row, :n].cpu().numpy() for x in (self.tokens, self.chosen))
            finished.append(
                Completion(self.rows[row].id, tokens.astype(np.int32), log_probs.copy(), not bool(ended[row]))
            )
        self._remove(over)
        return finished

    def _remove(self, over: list[int]) -> None:
        left = len(self.rows) - len(over)
        target = [r for r in over if r < left]
        source = [r for r in range(left, len(self.rows)) if r not in set(over)]
        if target:
            self.decoder.move(source, target)
            for state in (self.tokens, self.chosen, self.uniform, self.greedy, self.count, self.limit):
                state[target] = state[source]
            for s, t in zip(source, target, strict=True):
                self.rows[t] = self.rows[s]
        del self.rows[left:]

    @torch.no_grad()
    def load_weights(self, named: Iterable[tuple[str, Tensor]]) -> None:
        if self.busy:
            raise RuntimeError("weights cannot change while requests are unfinished")
        places = self.model.state_dict(keep_vars=True)
        missing = {name for name, _ in self.model.named_parameters()}
        for name, tensor in named:
            if name not in places:
                raise ValueError(f"the model has no parameter '{name}'")
            if places[name].shape != tensor.shape:
                raise ValueError(
                    f"'{name}' has shape {tuple(tensor.shape)}, the model's has {tuple(places[name].shape)}"
                )
            if self.device.type == "cpu" and tensor.dtype == places[name].dtype:
                places[name].data = tensor  # shared memory as it is: one copy of the weights for all workers of a node
            else:
                places[name].copy_(tensor)
            missing.discard(name)
        if missing:
            raise ValueError(f"no tensor for {', '.join(sorted(missing)[:3])} ({len(missing)} in all)")

    @torch.no_grad()
    def log_probs(self, tokens: np.ndarray) -> np.ndarray:
        ids = torch.as_tensor(tokens.astype(np.int64), device=self.device)
        logits = self.model(input_ids=ids[None, :-1], use_cache=False).logits[0].float()
        found = (logits / self.sampling.temperature).log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)
        return np.concatenate([np.zeros(1, np.float32), found.cpu().numpy()])

    def take_counters(self) -> dict[str, float]:
        return self.counters.take()

    def sleep(self) -> None:
        self.decoder.drop()
        if self.device.type == "cuda":
            self.model.to("cpu")
            torch.cuda.empty_cache()

    def wake(self) -> None:
        self.model.to(self.device)
