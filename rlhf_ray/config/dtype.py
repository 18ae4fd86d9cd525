"""The option `dtype` of models, engines and neural rewards, and what `auto` means on a device."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from .section import Section

Dtype = Literal["auto", "float32", "bfloat16"]
S = TypeVar("S", bound=Section)


def resolve_dtype(dtype: str, device: str) -> str:
    """'float32' or 'bfloat16': 'auto' is bfloat16 on a GPU ('cuda', 'cuda:0') and float32 on a CPU."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if device.startswith("cuda") else "float32"


def resolve_dtypes(section: S, device: str) -> S:
    """The section with every 'dtype: auto' in it, however deep, replaced by what it is on ``device``."""
    changes = {name: _resolved(name, value, device) for name, value in section}
    changes = {name: value for name, value in changes.items() if value is not getattr(section, name)}
    return section.model_copy(update=changes) if changes else section


def _resolved(name: str, value: Any, device: str) -> Any:
    if name == "dtype":
        return resolve_dtype(value, device)
    if isinstance(value, Section):
        return resolve_dtypes(value, device)
    if isinstance(value, list) and any(isinstance(item, Section) for item in value):
        return [_resolved("", item, device) for item in value]
    return value
