"""From a YAML file and dotted overrides to a checked job."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from .jobs import Job
from .section import BadInput

ADAPTER: TypeAdapter[Any] = TypeAdapter(Job)


class ConfigError(BadInput):
    """A job file or override that does not make a job."""


def load(path: str | Path, overrides: list[str] | None = None) -> Any:
    """The job of a YAML (or JSON) file with ``key.path=value`` overrides applied.

    Raises ConfigError: no such file, not YAML, or any check of the config tree, with the path of the key.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such job file; jobs/ has examples")
    try:
        tree = yaml.load(path.read_text(), Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a job file is a mapping of keys, such as `job: ppo`")
    return parse(apply_overrides(tree, overrides or []), str(path))


def parse(tree: dict[str, Any], where: str) -> Any:
    """A checked job from nested dicts. Raises ConfigError that names ``where`` and the key's path."""
    try:
        return ADAPTER.validate_python(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_sentence(e, tree) for e in error.errors()[:3])) from None


def apply_overrides(tree: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A copy of ``tree`` with each ``a.b.0.c=value`` set; values are YAML. Raises ConfigError."""
    tree = copy.deepcopy(tree)
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals or not dotted:
            raise ConfigError(f"override '{override}' is not key.path=value")
        try:
            value = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError:
            raise ConfigError(f"override '{override}': the value is not YAML; quote it") from None
        _set(tree, dotted.split("."), value, override)
    return tree


def _set(node: Any, keys: list[str], value: Any, override: str) -> None:
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise ConfigError(f"override '{override}': '{key}' is not an index of the list of {len(node)}")
            index: Any = int(key)
        elif isinstance(node, dict):
            index = key
            if not last and node.get(key) is None:
                node[key] = {}
        else:
            raise ConfigError(f"override '{override}': '{'.'.join(keys[:depth])}' holds a value, not keys")
        if last:
            node[index] = value
        else:
            node = node[index]


def _sentence(error: Any, tree: Any) -> str:
    where = ".".join(_path(error["loc"], tree))
    message = error["msg"].removeprefix("Value error, ")
    given = (
        ""
        if error["type"] in ("missing", "value_error") or isinstance(error["input"], dict)
        else f", got {error['input']!r}"
    )
    return f"{where}: {message}{given}" if where else f"{message}{given}"


def _path(loc: tuple[Any, ...], tree: Any) -> list[str]:
    """The keys of the file on the way to an error, without the names of variants that pydantic puts between them."""
    found, node = [], tree
    for position, part in enumerate(loc):
        if (isinstance(node, dict) and part in node) or (
            isinstance(node, list) and isinstance(part, int) and part < len(node)
        ):
            found.append(str(part))
            node = node[part]
        elif position == len(loc) - 1 and not isinstance(node, dict | list):
            continue
        elif not (isinstance(node, dict) and part in (node.get("type"), node.get("job"))):
            found.append(str(part))
    return found


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number, as YAML 1.2 does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)
