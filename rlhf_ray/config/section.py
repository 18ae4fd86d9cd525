"""The base of every config section: frozen, and strict about its keys."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from .synonyms import SYNONYMS


def _elsewhere(key: Any, names: Collection[str]) -> list[str]:
    """The option that other systems call ``key``: its name if it is one of ``names``, else its dotted path."""
    targets = SYNONYMS.get(str(key), ())
    return [t.rpartition(".")[2] for t in targets if t.rpartition(".")[2] in names] or list(targets)


class BadInput(ValueError):
    """Input a user can mend: one sentence with what, where and how. The command line exits with 2."""


class Section(BaseModel):
    """A frozen group of options. An unknown key is an error that suggests the nearest known one.

    ``unless_said`` names the variant of a key that says none: ``algorithm: {lam: 0.9}`` is ppo's.
    """

    unless_said: ClassVar[dict[str, str]] = {}
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    near = difflib.get_close_matches(str(key), cls.model_fields, n=1) or _elsewhere(
                        key, cls.model_fields
                    )
                    hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(cls.model_fields)}"
                    raise ValueError(f"unknown key '{key}'; {hint}")
            said = {
                k: {"type": kind, **data[k]} for k, kind in cls.unless_said.items() if isinstance(data.get(k), dict)
            }
            data = {**data, **said}
        return data
