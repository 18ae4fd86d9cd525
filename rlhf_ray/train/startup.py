"""Says how long each part of a job's start takes, between the placement and the first step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from ..run.events import notice


@contextlib.contextmanager
def startup_part(part: str) -> Iterator[None]:
    """Logs "start-up: PART took N s" after the block. A block that raises is not logged."""
    began = time.monotonic()
    yield
    notice(f"start-up: {part} took {time.monotonic() - began:.1f} s")
