"""What a run has used and cost, as `report` shows it: by stage, by step and by point of reward; a pipeline by its runs."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..run import usage
from ..run.meter import read, read_stages


def show(run_dir: Path, console: Console) -> bool:
    """Prints the table of a run, or of a pipeline's runs. Returns whether anything was counted there."""
    own = read(run_dir)
    if own is not None:
        console.print(of_run(run_dir.name, own))
        console.print(sentence(own))
        return True
    parts = read_stages(run_dir)
    if parts:
        console.print(of_pipeline(run_dir.name, parts))
    return bool(parts)


def of_run(name: str, total: usage.Totals) -> Table:
    """A row for each stage, the most expensive first."""
    table = _table(f"{name}: {total['devices']:g} {total['device']}s, {total['steps']} steps", "stage")
    for stage, seconds in sorted(total["stages"].items(), key=lambda item: -item[1]):
        _row(table, stage, seconds, total)
    _row(table, "all", total["device_seconds"], total)
    return table


def of_pipeline(name: str, parts: dict[str, usage.Totals]) -> Table:
    """A row for each run, in the order in which they ended."""
    whole = usage.together(list(parts.values()))
    table = _table(f"{name}: {len(parts)} runs, {whole['steps']} steps", "run")
    for part, total in parts.items():
        _row(table, part, total["device_seconds"], whole, total["steps"], total["cost"])
    _row(table, "all", whole["device_seconds"], whole)
    return table


def sentence(total: usage.Totals) -> str:
    """Tokens, idle share, and what a point of reward took."""
    seconds, kind, points = total["device_seconds"], total["device"], usage.rise(total)
    found = (
        f"{total['tokens']:.0f} tokens in {total['wall_seconds']:.0f} s, "
        f"{total['tokens'] / max(seconds, 1e-9):.0f} a {kind}-second; {kind}s idle {usage.idle_share(total):.0%}"
    )
    if points > 0:
        cost = "" if total["cost"] is None else f", cost {total['cost'] / points:.4f}"
        found += (
            f"; a point of reward ({points:+.3f} since the first step): {seconds / points:.0f} {kind}-seconds{cost}"
        )
    return found


def _table(title: str, first: str) -> Table:
    table = Table(title=title)
    for column in (first, "device-seconds", "a step", "share", "cost"):
        table.add_column(column, justify="left" if column == first else "right")
    return table


def _row(
    table: Table, name: str, seconds: float, of: usage.Totals, steps: int | None = None, cost: float | None = None
) -> None:
    """``seconds`` of those of ``of``; their cost is their share of its cost, unless it is known."""
    share = seconds / max(of["device_seconds"], 1e-9)
    if cost is None and of["cost"] is not None:
        cost = share * of["cost"]
    each = seconds / max(steps or of["steps"], 1)
    table.add_row(name, f"{seconds:.1f}", f"{each:.2f}", f"{share:.0%}", "" if cost is None else f"{cost:.4f}")
