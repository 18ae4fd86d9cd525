"""How a run ends early, and the callback that is told of its evaluations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from ..config import BadInput


class Stopped(Exception):
    """A signal ended the command, in a training with a checkpoint of the last step; exit code 3."""


class Failed(Exception):
    """Bad input that shows after training has begun: a failure (exit code 1), reported in one sentence."""


@contextlib.contextmanager
def failing(trained: Callable[[], bool]) -> Iterator[None]:
    """Turns BadInput of the block into Failed if ``trained()`` is true: exit code 2 means that nothing has run."""
    try:
        yield
    except BadInput as error:
        if trained():
            raise Failed(f"{error} (the same command continues from the last checkpoint, if there is one)") from error
        raise


Watch = Callable[[int, Mapping[str, float]], None]
"""Called after each evaluation of a training and its checkpoint, with the number of finished steps and the metrics."""


def unwatched(step: int, metrics: Mapping[str, float]) -> None:
    """A Watch that does nothing."""
