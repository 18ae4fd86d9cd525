"""How a run ends early, and who is told of its evaluations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from ..config import BadInput


class Stopped(Exception):
    """The command was told to stop and has written a checkpoint; exit code 3."""


class Failed(Exception):
    """Bad input that showed after training had begun: a failure, exit code 1, told in one sentence like a refusal."""


@contextlib.contextmanager
def failing(trained: Callable[[], bool]) -> Iterator[None]:
    """Turns BadInput that comes out of the block once ``trained()`` into Failed: exit code 2 says that nothing has run."""
    try:
        yield
    except BadInput as error:
        if trained():
            raise Failed(f"{error} (the same command goes on from the last checkpoint, if one was written)") from error
        raise


Watch = Callable[[int, Mapping[str, float]], None]
"""Called with the steps done and the step's metrics after each evaluation of a training, once what is due to be saved is."""


def unwatched(step: int, metrics: Mapping[str, float]) -> None:
    """Nobody watches."""
