"""A model's answers to held-out prompts, judged term by term, all together, by groups, and against another model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from ..config import BadInput, EvaluateJob
from ..quality import classes, intervals, text
from ..run.atomic import replace_file, write_json
from ..run.directory import RunDir
from ..run.reader import evaluation_file
from ..train.dispatch import Prompts
from .answers import answers


def run(job: EvaluateJob, held: RunDir, console: Console) -> dict[str, Any]:
    """Judges the model; writes RUN/evaluation.json and RUN/evaluations/step-000000.parquet. Returns each term's mean."""
    rows, prompts = answers(job, job.model, held.path, job.greedy, partial(require, job))
    found = judged(job, rows, prompts)
    if job.against is not None:
        plain = job.model_copy(update={"rollout": job.rollout.unguided})
        other, _ = answers(
            plain, job.model.model_copy(update={"path": job.against, "init": None}), held.path, job.greedy
        )
        found["wins"] = wins(rows, other, [t.name for t in job.rewards.terms])
    file = evaluation_file(held.path, 0)
    file.parent.mkdir(exist_ok=True)
    with replace_file(file) as part:
        pq.write_table(rows, part)
    write_json(held.path / "evaluation.json", found)
    show(job, found, rows, console)
    return {f"evaluate/{name}": term["mean"] for name, term in found["terms"].items()} | {
        f"evaluate/{name}": value for name, value in found["measures"].items() if isinstance(value, float)
    }


def require(job: EvaluateJob, prompts: Prompts) -> None:
    """Raises BadInput where the dataset lacks a column that was asked for, or a measure its library."""
    if {"bleu", "chrf"} & set(job.measures):
        text.sacrebleu()
    needs = dict.fromkeys(job.groups, "groups")
    if {"bleu", "chrf", "classes"} & set(job.measures):
        needs[job.reference] = "reference"
    for column, option in needs.items():
        if column not in prompts.rows.column_names:
            there = ", ".join(c for c in prompts.rows.column_names if c != "example_id")
            raise BadInput(
                f"{option}: data has no column '{column}' (it has {there}); name another, or rename with data.columns"
            )


def judged(job: EvaluateJob, rows: pa.Table, prompts: Prompts) -> dict[str, Any]:
    """Each term's mean with its interval, the measures of all answers, pass@k, and the groups."""
    names = [t.name for t in job.rewards.terms]
    at = np.searchsorted(prompts.example_id, rows["example_id"].to_numpy())
    texts = rows["completion"].to_pylist()
    found: dict[str, Any] = {
        "model": job.model.path, "prompts": len(prompts), "answers": len(texts),
        "terms": {n: vars(intervals.mean(_term(rows, n))) for n in names},
        "length": vars(intervals.mean(rows["length"].to_numpy())),
        "truncated": float(np.mean(rows["truncated"].to_numpy())),
        "repetition": float(np.mean([text.repetition(t) for t in texts])),
        "measures": {},
    }  # fmt: skip
    known = prompts.rows.take(at)
    references = (
        [text.references(r) for r in known[job.reference].to_pylist()] if job.reference in known.column_names else []
    )
    for measure in job.measures:
        found["measures"][measure] = MEASURES[measure](texts, references, job.language)
    for k in job.pass_at:
        right = {n: (_term(rows, n) > 0.5).reshape(-1, job.samples).sum(1) for n in names}
        found[f"pass@{k}"] = {
            n: vars(intervals.mean(np.array([text.pass_at_k(job.samples, int(c), k) for c in r])))
            for n, r in right.items()
        }
    found["groups"] = {
        column: {n: classes.by_group(known[column].to_pylist(), _term(rows, n)) for n in names} for column in job.groups
    }
    return found


def wins(ours: pa.Table, theirs: pa.Table, names: Sequence[str]) -> dict[str, Any]:
    """The share of answers in which ours is better, term by term, over the prompts that both models were asked.

    Another tokenizer may find other prompts too long. Raises BadInput where no prompt is left.
    """
    keys = [list(zip(t["example_id"].to_pylist(), t["sample"].to_pylist(), strict=True)) for t in (ours, theirs)]
    there = {key: i for i, key in enumerate(keys[1])}
    pairs = np.array([(i, there[key]) for i, key in enumerate(keys[0]) if key in there], np.int64).reshape(-1, 2)
    if not len(pairs):
        raise BadInput("against: no prompt was asked of both models; raise data.max_prompt_tokens")
    mine, other = pairs.T
    return {
        n: vars(intervals.win_rate(_term(ours, n)[mine], _term(theirs, n)[other])) | {"answers": len(pairs)}
        for n in names
    }


def _classes(texts: Sequence[str], references: text.References, language: str | None) -> dict[str, Any]:
    right = [r[0].strip() for r in references]
    return classes.classification(right, [t.strip() for t in texts], sorted(set(right)))


MEASURES: dict[str, Callable[[Sequence[str], text.References, str | None], Any]] = {
    "bleu": text.bleu,
    "chrf": lambda texts, references, language: text.chrf(texts, references),
    "distinct_1": lambda texts, references, language: text.distinct(texts, 1),
    "distinct_2": lambda texts, references, language: text.distinct(texts, 2),
    "classes": _classes,
}


def show(job: EvaluateJob, found: dict[str, Any], rows: pa.Table, console: Console) -> None:
    """The table of what was found, and the first answers."""
    table = Table(title=f"{found['model']}: {found['answers']} answers to {found['prompts']} prompts")
    for heading in ("", "mean", "95 % interval"):
        table.add_column(heading, justify="right" if heading else "left")
    estimates = {**found["terms"], "length": found["length"]}
    estimates |= {f"pass@{k} {n}": e for k in job.pass_at for n, e in found[f"pass@{k}"].items()}
    estimates |= {f"wins by {n}": e for n, e in found.get("wins", {}).items()}
    for name, e in estimates.items():
        table.add_row(name, f"{e['mean']:.3f}", f"[{e['low']:.3f}, {e['high']:.3f}]")
    for name, value in found["measures"].items():
        parts = (
            {f"{name} {k}": v for k, v in value.items() if isinstance(v, float)}
            if isinstance(value, dict)
            else {name: value}
        )
        for part, number in parts.items():
            table.add_row(part, f"{number:.3f}", "")
    for column, terms in found["groups"].items():
        for term, groups in terms.items():
            for name, value in groups["groups"].items():
                table.add_row(f"{term}, {column} {name}", f"{value:.3f}", f"{groups['counts'][name]} answers")
            table.add_row(f"{term}, gap over {column}", f"{groups['gap']:.3f}", "")
    console.print(table)
    for i in range(min(job.num_shown, len(rows))):
        console.print(f"> {rows['prompt'][i].as_py()}\n{rows['completion'][i].as_py()}\n")


def _term(rows: pa.Table, name: str) -> np.ndarray:
    return rows[f"part/{name}"].to_numpy()
