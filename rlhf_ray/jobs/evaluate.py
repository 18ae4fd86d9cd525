"""`job: evaluate`: a model's answers to held-out prompts, judged, by groups, and against another model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..config import BadInput, EvaluateJob
from ..quality import classes, intervals, text
from ..report.answers import evaluation_table, first_answers
from .generation import describe_generation, generation_needs
from .kind import JobKind, JobNeeds, Results, RunContext

if TYPE_CHECKING:
    from ..data.prompts import Prompts

REFERENCE_MEASURES = {"bleu", "chrf", "classes"}


def needs(job: EvaluateJob) -> JobNeeds:
    """What generation needs, the other model, and sacrebleu for its measures."""
    return generation_needs(
        job,
        model_paths=() if job.against is None else (job.against,),
        packages={"sacrebleu": text.SACREBLEU} if {"bleu", "chrf"} & set(job.measures) else {},
    )


def run(job: EvaluateJob, context: RunContext) -> Results:
    """Judges the model; writes RUN/evaluation.json and RUN/evaluations/step-000000.parquet.

    Returns the mean of each term, and each measure that is a number.
    """
    import pyarrow.parquet as pq

    from ..run.atomic import replace_file, write_json
    from ..run.reader import evaluation_file
    from .answers import generate_answers

    run_dir = context.run.path
    answers, prompts = generate_answers(job, job.model, run_dir, greedy=job.greedy, check=partial(check_columns, job))
    evaluation = judge_answers(job, answers, prompts)
    if job.against is not None:
        opponent = job.model.model_copy(update={"path": job.against, "init": None})
        unguided = job.model_copy(update={"rollout": job.rollout.unguided})
        other_answers, _ = generate_answers(unguided, opponent, run_dir, greedy=job.greedy)
        evaluation["wins"] = win_rates(answers, other_answers, [t.name for t in job.rewards.terms])
    file = evaluation_file(run_dir, 0)
    file.parent.mkdir(exist_ok=True)
    with replace_file(file) as temporary:
        pq.write_table(answers, temporary)
    write_json(run_dir / "evaluation.json", evaluation)
    context.console.print(evaluation_table(evaluation))
    for lines in first_answers(answers, job.num_shown):
        context.console.print(lines)
    measures = {name: value for name, value in evaluation["measures"].items() if isinstance(value, float)}
    means = {name: estimate["mean"] for name, estimate in evaluation["terms"].items()}
    return {f"evaluate/{name}": value for name, value in {**means, **measures}.items()}


def check_columns(job: EvaluateJob, prompts: Prompts) -> None:
    """Raises BadInput if the dataset lacks a column that the job names."""
    options = dict.fromkeys(job.groups, "groups")
    if REFERENCE_MEASURES & set(job.measures):
        options[job.reference] = "reference"
    columns = prompts.rows.column_names
    for column, option in options.items():
        if column not in columns:
            others = ", ".join(name for name in columns if name != "example_id")
            raise BadInput(
                f"{option}: data has no column '{column}' (it has {others}); name another, or rename with data.columns"
            )


def judge_answers(job: EvaluateJob, answers: pa.Table, prompts: Prompts) -> dict[str, Any]:
    """Each term's mean with its interval, the measures of all answers, pass@k, and the groups."""
    scores = {term.name: _scores(answers, term.name) for term in job.rewards.terms}
    texts = answers["completion"].to_pylist()
    rows = prompts.rows.take(np.searchsorted(prompts.example_id, answers["example_id"].to_numpy()))
    references: text.References = []
    if job.reference in rows.column_names:
        references = [text.references(cell) for cell in rows[job.reference].to_pylist()]
    evaluation: dict[str, Any] = {
        "model": job.model.path,
        "prompts": len(prompts),
        "answers": len(texts),
        "terms": {name: vars(intervals.mean(values)) for name, values in scores.items()},
        "length": vars(intervals.mean(answers["length"].to_numpy())),
        "truncated": float(np.mean(answers["truncated"].to_numpy())),
        "repetition": float(np.mean([text.repetition(answer) for answer in texts])),
        "measures": {name: MEASURES[name](texts, references, job.language) for name in job.measures},
    }
    for k in job.pass_at:
        evaluation[f"pass@{k}"] = {name: vars(_pass_at(k, values, job.samples)) for name, values in scores.items()}
    evaluation["groups"] = {
        column: {name: classes.by_group(rows[column].to_pylist(), values) for name, values in scores.items()}
        for column in job.groups
    }
    return evaluation


def _pass_at(k: int, scores: np.ndarray, samples: int) -> intervals.Estimate:
    """The mean over prompts of pass@k; an answer is right if its score is above 0.5."""
    num_right = (scores > 0.5).reshape(-1, samples).sum(1)
    return intervals.mean(np.array([text.pass_at_k(samples, int(count), k) for count in num_right]))


def win_rates(answers: pa.Table, other_answers: pa.Table, names: Sequence[str]) -> dict[str, Any]:
    """The share of answers that are better than the other model's, term by term, over the prompts that both have.

    With another tokenizer, other prompts may be too long. Raises BadInput if no prompt is left.
    """
    keys, other_keys = (
        list(zip(table["example_id"].to_pylist(), table["sample"].to_pylist(), strict=True))
        for table in (answers, other_answers)
    )
    other_rows = {key: row for row, key in enumerate(other_keys)}
    pairs = [(row, other_rows[key]) for row, key in enumerate(keys) if key in other_rows]
    if not pairs:
        raise BadInput("against: no prompt was asked of both models; raise data.max_prompt_tokens")
    rows, rows_of_other = np.array(pairs, np.int64).T
    return {
        name: vars(intervals.win_rate(_scores(answers, name)[rows], _scores(other_answers, name)[rows_of_other]))
        | {"answers": len(pairs)}
        for name in names
    }


def _scores(answers: pa.Table, term: str) -> np.ndarray:
    return answers[f"part/{term}"].to_numpy()


def _classes(texts: Sequence[str], references: text.References, language: str | None) -> dict[str, Any]:
    labels = [first.strip() for first, *_ in references]
    return classes.classification(labels, [answer.strip() for answer in texts], sorted(set(labels)))


MEASURES: dict[str, Callable[[Sequence[str], text.References, str | None], Any]] = {
    "bleu": text.bleu,
    "chrf": lambda texts, references, language: text.chrf(texts, references),
    "distinct_1": lambda texts, references, language: text.distinct(texts, 1),
    "distinct_2": lambda texts, references, language: text.distinct(texts, 2),
    "classes": _classes,
}

EVALUATE = JobKind(needs=needs, describe=describe_generation, run=run)
