"""What a run used and cost: by stage, by step and by point of reward; a pipeline by its runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from ..run.usage import Usage, read_stage_usage, read_usage, sum_usage

MIN_RISE = 0.0005  # points of reward; a smaller rise is shown as +0.000, and nothing is divided by it


@dataclass(frozen=True, kw_only=True)
class UsageRow:
    """Device-seconds of a part: in all, for each step, as a share of the total; and their cost if there is a price."""

    name: str
    device_seconds: float
    seconds_per_step: float
    share: float
    cost: float | None


@dataclass(frozen=True, kw_only=True)
class UsageReport:
    """The usage of a run by its stages, or of a pipeline by its runs; the last row is the total.

    ``parts`` is what the rows are ("stage" or "run"). ``summary`` is a sentence; None for a pipeline.
    """

    title: str
    parts: str
    rows: list[UsageRow]
    summary: str | None = None


def report_usage(run_dir: Path) -> UsageReport | None:
    """The usage of a run or a pipeline; None if nothing was counted there. Raises BadInput for a damaged usage.json."""
    usage = read_usage(run_dir)
    if usage is not None:
        return report_run(run_dir.name, usage)
    runs = read_stage_usage(run_dir)
    return report_pipeline(run_dir.name, runs) if runs else None


def report_run(name: str, usage: Usage) -> UsageReport:
    """A row for each stage, the most expensive first."""
    seconds_by_stage = {**dict(sorted(usage.stages.items(), key=lambda stage: -stage[1])), "all": usage.device_seconds}
    return UsageReport(
        title=f"{name}: {usage.devices:g} {usage.device}s, {usage.steps} steps",
        parts="stage",
        rows=[_row(stage, seconds, usage, usage.steps) for stage, seconds in seconds_by_stage.items()],
        summary=summarise(usage),
    )


def report_pipeline(name: str, runs: dict[str, Usage]) -> UsageReport:
    """A row for each run, in the order in which they ended."""
    total = sum_usage(runs.values())
    rows = [_row(run, usage.device_seconds, total, usage.steps, usage.cost) for run, usage in runs.items()]
    return UsageReport(
        title=f"{name}: {len(runs)} runs, {total.steps} steps",
        parts="run",
        rows=[*rows, _row("all", total.device_seconds, total, total.steps)],
    )


def summarise(usage: Usage) -> str:
    """A sentence: tokens, tokens per device-second, idle share, and what a point of reward took if the reward rose."""
    seconds, device, points = usage.device_seconds, usage.device, usage.reward_rise
    sentence = (
        f"{usage.tokens:.0f} tokens in {usage.wall_seconds:.0f} s, "
        f"{usage.tokens / max(seconds, 1e-9):.0f} per {device}-second; {device}s idle {usage.idle_share:.0%}"
    )
    if points >= MIN_RISE:
        cost = "" if usage.cost is None else f", cost {usage.cost / points:.4f}"
        sentence += (
            f"; a point of reward ({points:+.3f} since the first step): {seconds / points:.0f} {device}-seconds{cost}"
        )
    return sentence


def usage_table(report: UsageReport) -> Table:
    """The report as a table for the terminal, without its summary."""
    table = Table(title=report.title)
    for column in (report.parts, "device-seconds", "per step", "share", "cost"):
        table.add_column(column, justify="left" if column == report.parts else "right")
    for row in report.rows:
        cost = "" if row.cost is None else f"{row.cost:.4f}"
        table.add_row(row.name, f"{row.device_seconds:.1f}", f"{row.seconds_per_step:.2f}", f"{row.share:.0%}", cost)
    return table


def _row(name: str, seconds: float, total: Usage, steps: int, cost: float | None = None) -> UsageRow:
    """A row of ``seconds`` of the total's; without a ``cost`` of its own, its cost is its share of the total's."""
    share = seconds / max(total.device_seconds, 1e-9)
    if cost is None and total.cost is not None:
        cost = share * total.cost
    return UsageRow(name=name, device_seconds=seconds, seconds_per_step=seconds / max(steps, 1), share=share, cost=cost)
