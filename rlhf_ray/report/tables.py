"""Tables at the end of a run: evaluations before and after, samples side by side, a pipeline's stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from ..train import evaluation as heldout


def before_and_after(run_dir: Path, num_shown: int, console: Console) -> dict[str, heldout.Difference]:
    """Prints the paired comparison of a run's first and last evaluation, and samples side by side."""
    pair = heldout.first_and_last(run_dir)
    if pair is None:
        return {}
    found = heldout.compare(*pair)
    table = Table(title=f"{run_dir.name}: {len(pair[0])} held-out prompts before and after")
    for column in ("", "before", "after", "difference", "95 % interval"):
        table.add_column(column, justify="left" if not column else "right")
    for name, d in found.items():
        interval = f"[{d.low:+.3f}, {d.high:+.3f}]"
        table.add_row(
            name.removeprefix("part/"), f"{d.before:+.3f}", f"{d.after:+.3f}", f"{d.after - d.before:+.3f}", interval
        )
    console.print(table)
    if num_shown:
        console.print(samples(*pair, num_shown))
    return found


def samples(before: pa.Table, after: pa.Table, num_shown: int) -> Table:
    """The first completions before and after, side by side."""
    table = Table(title="samples", show_lines=True)
    for column in ("prompt", "before", "after"):
        table.add_column(column, overflow="fold")
    for i in range(min(num_shown, len(before))):
        table.add_row(
            *(t[c][i].as_py() for t, c in ((before, "prompt"), (before, "completion"), (after, "completion")))
        )
    return table


def stages(results: dict[str, dict[str, Any]], console: Console) -> None:
    """The table at the end of a pipeline: what each stage reached on held-out examples."""
    table = Table(title="held-out results of each stage", header_style="bold")
    for heading in ("stage", "measure", "before", "after", "95 % of the rise"):
        table.add_column(heading, justify="left" if heading in ("stage", "measure") else "right")
    for stage, found in results.items():
        for key, v in found.items():
            name = key.removeprefix("evaluate/").removeprefix("part/")
            if isinstance(v, dict):
                row = (f"{v['before']:+.3f}", f"{v['after']:+.3f}", f"[{v['low']:+.3f}, {v['high']:+.3f}]")
            else:
                row = ("", f"{v:.3f}", "")
            table.add_row(stage, name, *row)
    console.print(table)
