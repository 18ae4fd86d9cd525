"""Reads what a run wrote: metrics.jsonl, evaluations, and the JSON files of a run directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..config import BadInput

USAGE_REMEDY = "remove it; usage is then counted from zero"


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of RUN/metrics.jsonl, oldest first; empty if there is no such file.

    A value is a number, or None if it was not finite; ``step`` counts from 0. A last line that a crash cut short is
    left out. Raises BadInput, with the line, for damage anywhere else.
    """
    file = run_dir / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    rows = []
    for number, line in enumerate(lines, 1):
        row = parse_metrics(line)
        if row is not None:
            rows.append(row)
        elif number < len(lines):
            raise BadInput(f"{file}:{number}: not a line of metrics (a JSON object with a step); remove the line")
    return rows


def parse_metrics(line: str) -> dict[str, Any] | None:
    """The object of one line of metrics.jsonl; None if the line was cut short or is no such line."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def read_manifest(run_dir: Path) -> dict[str, Any]:
    """RUN/manifest.json; empty before there is one. Raises BadInput for a damaged one."""
    return read_json(run_dir / "manifest.json", "remove it; the run then gets a new id") or {}


def read_config(run_dir: Path) -> dict[str, Any] | None:
    """RUN/config.json, the job as a tree of options; None if there is none. Raises BadInput for a damaged one."""
    return read_json(run_dir / "config.json", "remove it; the next start of the same job writes it again")


def read_usage_json(run_dir: Path) -> dict[str, Any] | None:
    """RUN/usage.json, unchecked (see usage.read_usage); None if there is none. Raises BadInput for a damaged one."""
    return read_json(run_dir / "usage.json", USAGE_REMEDY)


def read_evaluation(run_dir: Path) -> dict[str, Any] | None:
    """RUN/evaluation.json; None if there is none. Raises BadInput for a damaged one."""
    return read_json(run_dir / "evaluation.json", "remove it; the next evaluation writes it again")


def evaluation_file(run_dir: Path, step: int) -> Path:
    """RUN/evaluations/step-000012.parquet: the answers to held-out prompts after 12 steps."""
    return run_dir / "evaluations" / f"step-{step:06d}.parquet"


def evaluation_files(run_dir: Path) -> list[Path]:
    """The files of RUN/evaluations, the earliest step first."""
    return sorted((run_dir / "evaluations").glob("step-*.parquet"), key=evaluation_step)


def evaluation_step(file: Path) -> int:
    """How many steps were done before the evaluation that is in ``file``."""
    return int(file.stem.removeprefix("step-"))


def read_json(file: Path, remedy: str) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no file. Raises BadInput, ending in ``remedy``, for other content."""
    if not file.is_file():
        return None
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # also bytes that are not UTF-8
        raise BadInput(f"{file}: damaged, not JSON ({error}); restore it, or {remedy}") from None
    if not isinstance(value, dict):
        raise BadInput(f"{file}: damaged, not a JSON object; restore it, or {remedy}")
    return value
