"""What an engine is: requests in, completions out, one decode step at a time. Tokens only; templates live above."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch


@dataclass(frozen=True)
class Sampling:
    """What all requests of an engine share: the whole softmax at ``temperature``, ended by any of ``eos_token_ids``."""

    max_new_tokens: int
    temperature: float
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """One sequence to sample. ``group`` marks requests that share a prompt; ``seed`` fixes its random numbers."""

    id: int
    prompt: np.ndarray
    seed: int
    group: int
    greedy: bool = False
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class Completion:
    """A finished response: tokens (C,) int32, the end token included, and their log_probs (C,) float32 as sampled."""

    id: int
    tokens: np.ndarray
    log_probs: np.ndarray
    truncated: bool


class Counters:
    """What an engine counts while it steps ``max_rows`` rows: tokens of finished responses, seconds, rows at work."""

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self._clear()

    def _clear(self) -> None:
        self.tokens = self.rows = self.steps = 0
        self.seconds = 0.0

    def step(self, rows: int, seconds: float, finished: Sequence[Completion]) -> None:
        """Counts one decode step of ``rows`` sequences, and what finished in it."""
        self.rows += rows
        self.steps += 1
        self.seconds += seconds
        self.tokens += sum(len(c.tokens) for c in finished)

    def take(self) -> dict[str, float]:
        """tokens, seconds and idle share since the last call."""
        idle = 1.0 - self.rows / max(1, self.steps * self.max_rows)
        found = {"tokens": float(self.tokens), "seconds": self.seconds, "idle_share": idle}
        self._clear()
        return found


class Engine(Protocol):
    """Generation is a loop over :meth:`add` and :meth:`step`, so that nothing else is starved while it goes on."""

    @property
    def busy(self) -> bool:
        """Whether requests are unfinished."""
        ...

    def add(self, requests: Sequence[Request]) -> None:
        """Queues requests."""
        ...

    def step(self) -> list[Completion]:
        """One decode step; what finished in it."""
        ...

    def load_weights(self, named: Iterable[tuple[str, torch.Tensor]]) -> None:
        """New weights by transformers' names. Raises ValueError naming a missing, unknown or mis-shaped tensor."""
        ...

    def log_probs(self, tokens: np.ndarray) -> np.ndarray:
        """Log-probs (T,) of a sequence's tokens at the sampling temperature, 0 for the first: the probe of a sync."""
        ...

    def take_counters(self) -> dict[str, float]:
        """Counters since the last call: tokens, seconds, idle share of the rows."""
        ...

    def sleep(self) -> None:
        """Gives device memory back."""
        ...

    def wake(self) -> None:
        """Takes it again."""
        ...
