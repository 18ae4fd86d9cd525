"""What is wrong before anything runs, as far as it can be seen without a model, Ray, or the user's code."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..config import BadInput, DataConfig, FunctionReward, Job, RuleReward, SingleJob
from ..config.jobs import STAGE
from ..data import check as data_check
from ..data import examples
from ..data import tokenizer as tokenizers
from ..models.load import find_local_model, resolve_model
from ..rewards.rules import rule
from ..run.reader import read_manifest
from .kinds import kind_of


def check_job(job: Job) -> None:
    """Raises BadInput for what a job, or any stage that is still to run, needs and does not find.

    Looked for are: data, model directories, reward functions, rules and optional packages.
    """
    for name, stage in kind_of(job).stages(job).items():
        if name and read_manifest(Path(job.run.dir).absolute() / name).get("state") == "finished":
            continue
        try:
            _check_single(stage)
        except BadInput as error:
            if not name:
                raise
            raise BadInput(f"stages.{name}: {error}") from None


def data_report(job: Job) -> Iterator[str]:
    """Sentences on the data of a job, or of each stage of a pipeline; data that an earlier stage will write is left out."""
    stages = kind_of(job).stages(job)
    for name, stage in stages.items():
        needs = kind_of(stage).needs(stage)
        sections = {option: needs.data.get(option) for option in ("data", "evaluate.data")}
        rows_by_option = {
            option: examples.load(section, option)
            for option, section in sections.items()
            if section is not None and not _waits(section)
        }
        tokenizer = _tokenizer(stage, stages)
        yield f"{name}: {stage.job}" if name else stage.job
        for rows in rows_by_option.values():
            if tokenizer is None:
                yield f"{rows.source}: {len(rows)} rows (no tokenizer yet, so their lengths are not known)"
            else:
                yield from data_check.lines(rows, tokenizer, dict(needs.token_limits))
        if len(rows_by_option) == 2:
            yield data_check.leakage(rows_by_option["data"], rows_by_option["evaluate.data"])


def _tokenizer(job: SingleJob, stages: Mapping[str, SingleJob]) -> Any:
    """The tokenizer of a job's model, or that of the earlier stage that it comes from; None if it does not exist yet."""
    while (model := kind_of(job).needs(job).model) is not None:
        name = model.tokenizer or model.path or ""
        if not name.startswith(STAGE):
            return tokenizers.load(model, resolve_model(model.path) if model.path else None, ends=False)
        job = stages[name.removeprefix(STAGE)]
    return None


def _check_single(job: SingleJob) -> None:
    needs = kind_of(job).needs(job)
    for option, section in needs.sections.items():
        _find(section, option)
    for package, sentence in needs.packages.items():
        if importlib.util.find_spec(package) is None:
            raise BadInput(sentence)
    own = [] if needs.model is None or needs.model.path is None else [needs.model.path]
    for path in [*own, *needs.model_paths, *needs.reward_models]:
        if not path.startswith(STAGE):
            find_local_model(path)
    for term in [] if needs.rewards is None else needs.rewards.terms:
        if isinstance(term, FunctionReward):
            find_function(term)
        if isinstance(term, RuleReward):
            rule(term.rule, term.options)  # its name and its options


def _waits(section: DataConfig) -> bool:
    """Whether a source of the section is what an earlier stage will write."""
    return any(source.path.startswith(STAGE) for source in section.sources)


def _find(section: DataConfig, option: str) -> None:
    """Raises BadInput unless every source is there that no earlier stage writes."""
    for key, source in examples.named(section, option):
        if not source.path.startswith(STAGE):
            examples.find(source, key)


def find_function(term: FunctionReward) -> None:
    """Raises BadInput unless the file of a reward function can be parsed and binds its name somewhere; imports nothing."""
    file, _, function = term.path.rpartition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        raise BadInput(f"reward '{term.name}': no such file {file}")
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise BadInput(f"reward '{term.name}': {file}:{getattr(error, 'lineno', 1)}: {error}; mend the file") from None
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    if function not in names and "*" not in names:
        own = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        raise BadInput(f"reward '{term.name}': no function '{function}' in {file}; it has {', '.join(own) or 'none'}")
