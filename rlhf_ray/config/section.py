"""The base of every config section: frozen, and strict about its keys."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from .synonyms import SYNONYMS


def _elsewhere(key: Any, names: Collection[str]) -> list[str]:
    """Options that other systems call ``key``: by name if they are among ``names``, else by dotted path."""
    targets = SYNONYMS.get(str(key), ())
    return [t.rpartition(".")[2] for t in targets if t.rpartition(".")[2] in names] or list(targets)


class BadInput(ValueError):
    """Input that the user can fix. The message says what is wrong, where, and how to fix it. Exit code 2."""


class Section(BaseModel):
    """A frozen group of options. An unknown key is an error that suggests the most similar known one.

    ``default_variants`` maps a key to the variant of a section without a type: ``algorithm: {lam: 0.9}`` is ppo's.
    """

    default_variants: ClassVar[dict[str, str]] = {}
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
            typed = {
                key: {"type": variant, **data[key]}
                for key, variant in cls.default_variants.items()
                if isinstance(data.get(key), dict)
            }
            data = {**data, **typed}
        return data
