"""The Engine protocol: token requests in, completions out, one decode step at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

PARTS = frozenset({"weights", "kv_cache"})  # of an engine's device memory


@dataclass(frozen=True)
class Sampling:
    """What all requests of an engine share.

    Tokens are drawn from the whole softmax at ``temperature``. Any of ``eos_token_ids`` ends a response.
    """

    max_new_tokens: int
    temperature: float
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One sequence to sample after ``prompt`` (P,). ``seed`` fixes its random numbers.

    Neighbours of the same ``group`` and prompt share a prefill. ``max_new_tokens`` may lower the limit of Sampling.
    """

    id: int
    prompt: np.ndarray
    seed: int
    group: int
    greedy: bool = False
    max_new_tokens: int | None = None

    def limit(self, sampling: Sampling) -> int:
        """The most tokens that the response may have."""
        return min(self.max_new_tokens or sampling.max_new_tokens, sampling.max_new_tokens)


@dataclass(frozen=True)
class Completion:
    """A finished response: tokens (C,) int32 with the end token, and their log_probs (C,) float32 as sampled.

    ``truncated``: the response reached its limit without an end token.
    """

    id: int
    tokens: np.ndarray
    log_probs: np.ndarray
    truncated: bool


@dataclass(frozen=True)
class Decoding:
    """How an engine decodes. ``remark`` is a sentence for the user if that is slower than usual; else it is empty."""

    method: str
    remark: str = ""


class Counters:
    """Counts of an engine that decodes up to ``max_rows`` rows together, since they were last taken."""

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self._clear()

    def _clear(self) -> None:
        self.tokens = self.rows = self.steps = 0
        self.seconds = 0.0

    def count_step(self, rows: int, seconds: float, finished: Sequence[Completion]) -> None:
        """Counts one decode step of ``rows`` sequences, and the tokens of the responses that ``finished`` in it."""
        self.rows += rows
        self.steps += 1
        self.seconds += seconds
        self.tokens += sum(len(c.tokens) for c in finished)

    def take(self) -> dict[str, float]:
        """Tokens of finished responses, seconds, and the idle share of the rows. The counts begin again at zero."""
        idle_share = 1.0 - self.rows / max(1, self.steps * self.max_rows)
        counts = {"tokens": float(self.tokens), "seconds": self.seconds, "idle_share": idle_share}
        self._clear()
        return counts


class Engine(Protocol):
    """Generation is a loop over :meth:`add` and :meth:`step`: a caller can work between two steps."""

    decoding: Decoding

    @property
    def busy(self) -> bool:
        """Whether requests are unfinished."""
        ...

    def add(self, requests: Sequence[Request]) -> None:
        """Queues requests."""
        ...

    def step(self) -> list[Completion]:
        """Runs one decode step. Returns the completions that finished in it."""
        ...

    def load_weights(self, named: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Loads new weights, by the names that the engine's config asks for (``weight_names``).

        Raises ValueError that names a tensor that is missing, unknown or of another shape.
        """
        ...

    def log_probs(self, tokens: np.ndarray) -> np.ndarray:
        """Log-probs (T,) float32 of ``tokens`` (T,) at the sampling temperature, 0 for the first; a sync's probe."""
        ...

    def take_counters(self) -> dict[str, float]:
        """The counts since the last call: tokens, seconds, idle share of the rows."""
        ...

    def keep_awake(self, parts: Collection[str], keep_weights: bool = True) -> None:
        """Gives back device memory but for that of ``parts`` ('weights', 'kv_cache'), and takes theirs again.

        Weights that leave stay on the host if ``keep_weights``; otherwise they are undefined until the next
        :meth:`load_weights`. Requests need both parts.
        """
        ...
