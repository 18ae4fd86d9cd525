"""The console that reports are printed on."""

import sys

from rich.console import Console


def plain_console() -> Console:
    """A console that shows text as it is: what users and models write may look like markup ('[/INST]')."""
    return Console(width=None if sys.stdout.isatty() else 120, markup=False, emoji=False)
