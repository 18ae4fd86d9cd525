"""Every option of every job, as lines: the golden list and `rlhf-ray options` are made of it."""

from __future__ import annotations

import typing
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from .jobs import Job
from .tune import TuneConfig


def listing() -> list[str]:
    """Lines 'job.key.path  type  default  meaning', sorted; a variant's options stand under its name in brackets."""
    found: dict[str, str] = {}
    for job in _variants(Job):
        _walk(job, str(job.model_fields["job"].default), found)
    _walk(TuneConfig, "tune", found)
    return [f"{path}  {rest}" for path, rest in sorted(found.items())]


def _walk(section: type[BaseModel], path: str, found: dict[str, str]) -> None:
    for name, field in section.model_fields.items():
        here = f"{path}.{name}"
        variants = _variants(field.annotation)
        if name not in ("type", "job"):
            default = (
                "required" if field.default is PydanticUndefined and field.default_factory is None else _default(field)
            )
            found[here] = f"{_type(field.annotation)}  {default}  {field.description}"
        if name == "stages":
            continue  # each stage is a job of its own, listed under its name
        for variant in variants:
            tag = variant.model_fields.get("type")
            _walk(variant, f"{here}[{tag.default}]" if tag is not None else here, found)


def _variants(annotation: Any) -> list[type[BaseModel]]:
    """The sections inside an annotation: unions, lists, optional ones."""
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
