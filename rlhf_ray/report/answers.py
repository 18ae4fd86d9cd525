"""Tables of judged answers: what `job: evaluate` shows at its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
from rich.table import Table


def evaluation_table(evaluation: Mapping[str, Any]) -> Table:
    """A row for each estimate of RUN/evaluation.json with its interval, for each measure, and for each group."""
    title = f"{evaluation['model']}: {evaluation['answers']} answers to {evaluation['prompts']} prompts"
    table = Table(title=title)
    for heading in ("", "mean", "95 % interval"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, estimate in _estimates(evaluation):
        table.add_row(name, f"{estimate['mean']:.3f}", f"[{estimate['low']:.3f}, {estimate['high']:.3f}]")
    for name, value in _measures(evaluation["measures"]):
        table.add_row(name, f"{value:.3f}", "")
    for column, terms in evaluation["groups"].items():
        for term, groups in terms.items():
            for group, mean in groups["groups"].items():
                table.add_row(f"{term}, {column} {group}", f"{mean:.3f}", f"{groups['counts'][group]} answers")
            table.add_row(f"{term}, gap over {column}", f"{groups['gap']:.3f}", "")
    return table


def _estimates(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Everything that has an interval, by name: terms, length, pass@k of each term, win rates."""
    yield from evaluation["terms"].items()
    yield "length", evaluation["length"]
    for key, terms in evaluation.items():
        if key.startswith("pass@"):
            yield from ((f"{key} {name}", estimate) for name, estimate in terms.items())
    yield from ((f"wins by {name}", estimate) for name, estimate in evaluation.get("wins", {}).items())


def _measures(measures: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Measures that are numbers; of a measure with parts, each part that is one."""
    for name, value in measures.items():
        parts = (
            {f"{name} {part}": number for part, number in value.items()} if isinstance(value, dict) else {name: value}
        )
        yield from ((part, number) for part, number in parts.items() if isinstance(number, float))


def first_answers(answers: pa.Table, count: int) -> Iterator[str]:
    """The first prompts with their answers, as text."""
    for row in answers.slice(0, count).to_pylist():
        yield f"> {row['prompt']}\n{row['completion']}\n"
