"""What is wrong before anything runs, as far as it can be seen without a model, Ray, or the user's code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config import (
    Answers,
    BadInput,
    DataConfig,
    FunctionReward,
    NeuralReward,
    PipelineJob,
    RLJob,
    ScoreJob,
    Seq2SeqJob,
    Supervised,
    TokenizerJob,
)
from ..config.jobs import STAGE
from ..data import check as data_check
from ..data import examples
from ..data import tokenizer as tokenizers
from ..models import load as models
from ..run.reader import read_manifest


def check(job: Any) -> None:
    """Raises BadInput for data, a model directory or a reward function that is not there, in any stage still to run."""
    stages = job.stages if isinstance(job, PipelineJob) else {}
    for name, stage in stages.items():
        if read_manifest(Path(job.run.dir).absolute() / name).get("state") != "finished":
            try:
                _check(stage)
            except BadInput as error:
                raise BadInput(f"stages.{name}: {error}") from None
    if not stages:
        _check(job)


def data_report(job: Any) -> Iterator[str]:
    """Sentences on the data of a job, or of a pipeline's stages; what an earlier stage will write is left out."""
    for name, stage in (job.stages if isinstance(job, PipelineJob) else {"": job}).items():
        sections = {"data": stage.data}
        if isinstance(stage, Supervised | RLJob):
            sections["evaluate.data"] = stage.evaluate.data
        given = {o: s for o, s in sections.items() if s is not None and not _waits(s)}
        found = {option: examples.load(section, option) for option, section in given.items()}
        tokenizer = _tokenizer(stage, getattr(job, "stages", {}))
        yield f"{name}: {stage.job}" if name else stage.job
        for rows in found.values():
            if tokenizer is None:
                yield f"{rows.source}: {len(rows)} rows (no tokenizer yet, so their lengths are not known)"
            else:
                yield from data_check.lines(rows, tokenizer, _limits(stage))
        if len(found) == 2:
            yield data_check.leakage(found["data"], found["evaluate.data"])


def _tokenizer(job: Any, stages: dict[str, Any]) -> Any:
    """The tokenizer of a job's model, that of an earlier stage's where it comes from there; None where one is yet to be trained."""
    while not isinstance(job, TokenizerJob | ScoreJob):
        name = job.model.tokenizer or job.model.path
        if not name.startswith(STAGE):
            return tokenizers.load(job.model, models.resolve(job.model.path) if job.model.path else None, ends=False)
        job = stages[name.removeprefix(STAGE)]
    return None


def _limits(job: Any) -> dict[str, int]:
    """Most tokens of a prompt (jobs with rollouts), of each side (seq2seq), or of a whole row."""
    if isinstance(job, TokenizerJob | ScoreJob):
        return {}
    if isinstance(job, Seq2SeqJob):
        return dict.fromkeys(("source", "target", "prompt", "completion"), job.max_length)
    prompts = getattr(job.data, "max_prompt_tokens", None)
    return {"row": job.max_length} if prompts is None else {"prompt": prompts}


def _check(job: Any) -> None:
    _find(job.data, "data")
    if isinstance(job, TokenizerJob):
        return
    sections, terms = {}, []
    paths = [] if isinstance(job, ScoreJob) else [job.model.path]
    if isinstance(job, Answers | ScoreJob):
        terms = [*job.rewards.terms]
        paths += [getattr(job, "against", None), *(t.path for t in terms if isinstance(t, NeuralReward))]
    else:
        sections["evaluate.data"] = job.evaluate.data
    if isinstance(job, RLJob):
        sections["ptx_data"] = job.ptx_data
        terms = [*job.rewards.terms, *job.evaluate.terms]
        paths += [job.critic.path, *(t.path for t in terms if isinstance(t, NeuralReward))]
    for option, section in sections.items():
        if section is not None:
            _find(section, option)
    for path in paths:
        if path is not None and not path.startswith(STAGE):
            models.find(path)
    for term in terms:
        if isinstance(term, FunctionReward):
            find_function(term)


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
