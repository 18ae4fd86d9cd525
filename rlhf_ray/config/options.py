"""The list of all options of all jobs, which `rlhf-ray options` prints."""

from __future__ import annotations

import difflib
import re
import typing
from collections import Counter, defaultdict
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from .jobs import Job
from .section import BadInput
from .synonyms import SYNONYMS
from .tune import TuneConfig


def listing() -> list[str]:
    """Lines 'job.key.path  type  default  meaning', sorted.

    The path of a variant's option has the variant's name in brackets: 'ppo.algorithm[grpo].clip_low'.
    """
    lines: dict[str, str] = {}
    for job in _variants(Job):
        _add_options(job, str(job.model_fields["job"].default), lines)
    _add_options(TuneConfig, "tune", lines)
    return [f"{path}  {rest}" for path, rest in sorted(lines.items())]


def search(word: str) -> list[str]:
    """Lines of the options whose path contains ``word``, or that other systems call ``word``.

    An option that several jobs or algorithms share is one line, such as
    'learner.lr  float  1e-06; reward 1e-05  Learning rate.  (12 jobs)'. Raises BadInput with similar options if no
    option matches.
    """
    targets = SYNONYMS.get(word, ())
    groups: dict[tuple[str, str, str], list[tuple[str, str, str]]] = defaultdict(list)
    for line in listing():
        path, kind, default, meaning = line.split("  ", 3)
        job, _, key = path.partition(".")
        plain = re.sub(r"\[\w+\]", "", key)
        if word in path or word in f"{job}.{plain}" or any(f".{plain}".endswith(f".{target}") for target in targets):
            variants = re.findall(r"\[(\w+)\]", key)
            groups[plain, kind, meaning].append((job, variants[-1] if variants else job, default))
    if not groups:
        names = {re.sub(r"\[\w+\]", "", line.split("  ")[0]).rpartition(".")[2] for line in listing()}
        near = difflib.get_close_matches(word, sorted(names | set(SYNONYMS)), n=3)
        hint = f"similar: {', '.join(near)}" if near else "`rlhf-ray options` lists all options"
        raise BadInput(f"no option matches '{word}'; {hint}")
    return [_group_line(*key, uses) for key, uses in sorted(groups.items())]


def _group_line(plain: str, kind: str, meaning: str, uses: list[tuple[str, str, str]]) -> str:
    """The line of an option. ``uses`` are (job, variant or else job, default)."""
    jobs = sorted({job for job, _, _ in uses})
    common = Counter(default for _, _, default in uses).most_common(1)[0][0]
    others = dict.fromkeys(f"{name} {default}" for _, name, default in uses if default != common)
    where = f"{jobs[0]}.{plain}" if len(jobs) == 1 else plain
    names = jobs if len(jobs) > 1 else [name for name in dict.fromkeys(name for _, name, _ in uses) if name not in jobs]
    shown = f"{len(names)} jobs" if len(jobs) > 4 else ", ".join(names)
    end = f"  ({shown})" if names and (len(jobs) > 1 or len(names) <= 3) else ""
    return f"{where}  {kind}  {'; '.join([common, *others])}  {meaning}{end}"


def _add_options(section: type[BaseModel], path: str, lines: dict[str, str]) -> None:
    """Adds the options of a section and of all sections in it to ``lines``: dotted path -> type, default, meaning."""
    for name, field in section.model_fields.items():
        option = f"{path}.{name}"
        variants = _variants(field.annotation)
        if name not in ("type", "job"):
            default = (
                "required" if field.default is PydanticUndefined and field.default_factory is None else _default(field)
            )
            lines[option] = f"{_type(field.annotation)}  {default}  {field.description}"
        if name == "stages":
            continue  # a stage is a job, and each job is listed under its name
        for variant in variants:
            tag = variant.model_fields.get("type")
            _add_options(variant, f"{option}[{tag.default}]" if tag is not None else option, lines)


def _variants(annotation: Any) -> list[type[BaseModel]]:
    """The sections in an annotation: the members of a union, the items of a list, an optional section."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [v for inner in get_args(annotation) for v in _variants(inner)]


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    return type(value).__name__ if isinstance(value, BaseModel) else repr(value)


def _type(annotation: Any) -> str:
    if get_origin(annotation) is typing.Annotated:
        return _type(get_args(annotation)[0])
    if get_origin(annotation) is typing.Literal:
        return "|".join(map(str, get_args(annotation)))
    inner = [_type(a) for a in get_args(annotation) if a is not type(None)]
    if get_origin(annotation) in (list, tuple, dict):
        return f"{get_origin(annotation).__name__}[{', '.join(dict.fromkeys(inner))}]"
    if inner:
        return " | ".join(dict.fromkeys(inner))
    return getattr(annotation, "__name__", str(annotation))
