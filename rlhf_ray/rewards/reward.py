"""What every reward term has: its scorer, its samples, and the checks of what it returns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..batch import Batch
from ..config import BadInput

FLOAT32_MAX = float(np.finfo(np.float32).max)
DROPPED = np.float32(-np.inf)
"""The reward part of a sample that ``on_error: drop`` leaves out. NaN is the part of a term that does not apply."""


class RewardError(BadInput):
    """A reward that is not available, or that returned something else than one number for each completion."""


class Reward(Protocol):
    """TRL's signature: prompts, completions, every other column of the dataset as a list; returns a number for each.

    None in place of a number: the term does not apply to the sample, and adds nothing to its reward.

    A user's function gets completion_ids too (lists of token ids, end token included). If a prompt is a list of
    messages, its completion has that form: [{"role": "assistant", "content": text}]. TRL's trainer_state, log_extra and
    log_metric belong to its trainer and are not passed. Rules get text, and no completion_ids.
    """

    def __call__(
        self, prompts: list[Any], completions: list[Any], **columns: list[Any]
    ) -> list[float] | list[float | None]: ...


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The samples that are scored, as tokens and as text; B of each."""

    batch: Batch
    prompts: list[Any]
    """As the dataset has them: text, or a list of messages."""
    completions: list[str]
    columns: dict[str, list[Any]]
    """The dataset's other columns."""

    def column_names(self) -> str:
        """The columns of the dataset, for messages."""
        return ", ".join(["prompt", *self.columns])


@dataclass(frozen=True, kw_only=True)
class ScorerContext:
    """What a scorer may need of the worker that it is in."""

    tokenizer: Any
    """The policy's; None if there is no policy."""
    device: str
    prints: Path | None
    """The directory for what users' functions print."""


class TermScorer:
    """Scores samples by one term of the reward."""

    model: Any = None
    """The term's torch module, if it has one."""

    def score(self, samples: Samples) -> np.ndarray:
        """(B,) float32; NaN: the term does not apply; DROPPED: no number, under on_error: drop. Raises RewardError."""
        raise NotImplementedError

    def require(self, max_tokens: int) -> None:
        """Raises RewardError if sequences of ``max_tokens`` of the policy's tokens cannot be scored."""

    def steps(self, batch: Batch) -> np.ndarray | None:
        """(T,) float32: the score of each step at its last token; None: the term scores whole answers."""
        return None


def checked(name: str, source: str, values: Any, example_id: Sequence[int], on_error: str) -> np.ndarray:
    """What a reward returned as (B,) float32. None becomes NaN; what is no finite number becomes DROPPED under 'drop'.

    Raises RewardError that names the term, its ``source`` and the row's example_id.
    """
    if not isinstance(values, list | tuple | np.ndarray) or np.ndim(values) == 0:
        raise RewardError(f"reward '{name}' ({source}) returned {type(values).__name__}; return a list of floats")
    if len(values) != len(example_id):
        raise RewardError(
            f"reward '{name}' ({source}) returned {len(values)} values for {len(example_id)} completions; return one each"
        )
    scores = np.array([math.nan if value is None else _number(value) for value in values], np.float32)
    invalid = np.flatnonzero(scores == DROPPED)
    if len(invalid) and on_error == "fail":
        raise RewardError(
            f"reward '{name}' ({source}) returned {str(values[invalid[0]])[:80]!r} for example {example_id[invalid[0]]}; "
            "return a finite number (None: the term does not apply), or set on_error: drop to leave such samples out"
        )
    return scores


def _number(value: Any) -> float:
    """``value`` if it is a number that float32 holds, else DROPPED."""
    if not isinstance(value, int | float | np.integer | np.floating | np.bool_):
        return float(DROPPED)
    return float(value) if abs(float(value)) <= FLOAT32_MAX else float(DROPPED)
