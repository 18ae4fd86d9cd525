"""What is wrong before anything runs, as far as it can be seen without a model, Ray, or the user's code."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from ..config import Answers, BadInput, FunctionReward, ModelReward, PipelineJob, RLJob
from ..config.jobs import STAGE
from ..data import examples
from ..models import load as models
from .rundir import manifest


def check(job: Any) -> None:
    """Raises BadInput for data, a model directory or a reward function that is not there, in any stage still to run."""
    stages = job.stages if isinstance(job, PipelineJob) else {}
    for name, stage in stages.items():
        if manifest(Path(job.run.dir).absolute() / name).get("state") != "finished":
            try:
                _check(stage)
            except BadInput as error:
                raise BadInput(f"stages.{name}: {error}") from None
    if not stages:
        _check(job)


def _check(job: Any) -> None:
    sections, paths, terms = {"data": job.data}, [job.model.path], []
    if isinstance(job, Answers):
        terms = [*job.rewards.terms]
        paths += [getattr(job, "against", None), *(t.path for t in terms if isinstance(t, ModelReward))]
    else:
        sections["evaluate.data"] = job.evaluate.data
    if isinstance(job, RLJob):
        sections["ptx_data"] = job.ptx_data
        terms = [*job.rewards.terms, *job.evaluate.terms]
        paths += [job.critic.path, *(t.path for t in terms if isinstance(t, ModelReward))]
    for option, section in sections.items():
        if section is not None and not section.path.startswith(STAGE):
            examples.find(section, option)
    for path in paths:
        if path is not None and not path.startswith(STAGE):
            models.find(path)
    for term in terms:
        if isinstance(term, FunctionReward):
            find_function(term)


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
