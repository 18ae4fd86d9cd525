"""The table of what a rehearsal ran, with seconds, at its end."""

import time
from contextlib import contextmanager

import pytest

TIMES = pytest.StashKey[list[tuple[str, float]]]()


@pytest.fixture
def timed(request):
    """timed(description): measures a block for the table. A block that fails has no row."""
    rows = request.config.stash.setdefault(TIMES, [])

    @contextmanager
    def measure(description):
        began = time.perf_counter()
        yield
        rows.append((description, time.perf_counter() - began))

    return measure


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash.get(TIMES, [])
    if rows:
        terminalreporter.section("rehearsal")
        width = max(len(description) for description, _ in rows)
        for description, seconds in rows:
            terminalreporter.write_line(f"{description:{width}}  {seconds:6.1f} s")
