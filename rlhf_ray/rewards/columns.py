"""Which columns of the dataset the terms of a reward read by name."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..config import ClassifierReward, FunctionReward, RuleReward
from .rules import rule_columns


def _of_rule(term: RuleReward) -> Iterable[str]:
    return rule_columns(term.rule)


def _of_function(term: FunctionReward) -> Iterable[str]:
    """The parameters of the function, read from the file without importing it; none if the file cannot be read."""
    file, _, name = term.path.rpartition(":")
    try:
        tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):  # the check of the terms says what is wrong with the file
        return ()
    functions = (n for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and n.name == name)
    return [a.arg for f in functions for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs)]


def _of_classifier(term: ClassifierReward) -> Iterable[str]:
    return () if term.label is not None else (term.column,)


COLUMNS_OF: dict[str, Callable[[Any], Iterable[str]]] = {
    "rule": _of_rule,
    "function": _of_function,
    "classifier": _of_classifier,
}
"""By the type of the term; other types read no column but the prompt."""


def columns_by_name(terms: Iterable[Any]) -> set[str]:
    """The columns that these terms name, the prompt among them. A function may read others through ``**columns``."""
    return {"prompt"} | {column for term in terms if term.type in COLUMNS_OF for column in COLUMNS_OF[term.type](term)}
