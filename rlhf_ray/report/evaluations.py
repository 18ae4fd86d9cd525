"""Held-out results of a run: its first and last evaluation side by side, and each stage of a pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ..train.evaluation import Difference, compare_evaluations, read_first_and_last


@dataclass(frozen=True)
class SamplePair:
    """The completions of a held-out prompt in two evaluations."""

    prompt: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A run's first and last evaluation: each measure with its paired difference, and all completions in pairs."""

    run: str
    differences: dict[str, Difference]
    samples: list[SamplePair]


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """A held-out measure of a pipeline's stage; a measure before and after training is a Difference."""

    stage: str
    measure: str
    value: float | Difference


def compare_first_and_last(run_dir: Path) -> Comparison | None:
    """The comparison of a run's first and last evaluation; None if there are not two."""
    pair = read_first_and_last(run_dir)
    if pair is None:
        return None
    before, after = pair
    texts = (before["prompt"], before["completion"], after["completion"])
    rows = zip(*(column.to_pylist() for column in texts), strict=True)
    return Comparison(
        run=run_dir.name, differences=compare_evaluations(before, after), samples=[SamplePair(*row) for row in rows]
    )


def comparison_tables(comparison: Comparison, num_samples: int) -> list[Table]:
    """The comparison as tables for the terminal: measures, and the first ``num_samples`` completions side by side."""
    title = f"{comparison.run}: {len(comparison.samples)} held-out prompts before and after"
    measures = Table(title=title)
    for column in ("", "before", "after", "difference", "95 % interval"):
        measures.add_column(column, justify="left" if not column else "right")
    for name, d in comparison.differences.items():
        interval = f"[{d.low:+.3f}, {d.high:+.3f}]"
        shown = (f"{d.before:+.3f}", f"{d.after:+.3f}", f"{d.after - d.before:+.3f}", interval)
        measures.add_row(name.removeprefix("part/"), *shown)
    if not num_samples:
        return [measures]
    samples = Table(title="samples", show_lines=True)
    for column in ("prompt", "before", "after"):
        samples.add_column(column, overflow="fold")
    for sample in comparison.samples[:num_samples]:
        samples.add_row(sample.prompt, sample.before, sample.after)
    return [measures, samples]


def stage_results(results: dict[str, dict[str, Any]]) -> list[StageResult]:
    """The results of a pipeline's stages, as their manifests have them, one record a measure."""
    return [
        StageResult(
            stage=stage,
            measure=name.removeprefix("evaluate/").removeprefix("part/"),
            value=Difference(**value) if isinstance(value, dict) else value,
        )
        for stage, measures in results.items()
        for name, value in measures.items()
    ]


def stage_table(results: list[StageResult]) -> Table:
    """The table at the end of a pipeline."""
    table = Table(title="held-out results of each stage", header_style="bold")
    for heading in ("stage", "measure", "before", "after", "95 % of the rise"):
        table.add_column(heading, justify="left" if heading in ("stage", "measure") else "right")
    for result in results:
        if isinstance(result.value, Difference):
            d = result.value
            row = (f"{d.before:+.3f}", f"{d.after:+.3f}", f"[{d.low:+.3f}, {d.high:+.3f}]")
        else:
            row = ("", f"{result.value:.3f}", "")
        table.add_row(result.stage, result.measure, *row)
    return table
