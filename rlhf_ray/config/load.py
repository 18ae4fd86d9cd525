"""Loads a job from a YAML file and dotted overrides, and checks it."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from .jobs import Job, RLJob
from .rollout import RolloutConfig
from .section import BadInput
from .supervised import PreferenceJob
from .tune import Search, TuneConfig, values_to_check

ADAPTER: TypeAdapter[Any] = TypeAdapter(Job)
DEFAULT_VARIANTS = RLJob.default_variants | PreferenceJob.default_variants | RolloutConfig.default_variants


class ConfigError(BadInput):
    """A job file or an override that is not valid."""


def load_job(path: str | Path, overrides: list[str] | None = None) -> Any:
    """The job of a YAML (or JSON) file with ``key.path=value`` overrides; a section `tune:` is checked and left out.

    Raises ConfigError if there is no such file, it is not YAML, or a check of the config tree fails. The message has
    the path of the key.
    """
    tree = read_tree(path, overrides)
    if tree.get("tune") is not None:
        _space(tree, str(path))
    return parse({key: value for key, value in tree.items() if key != "tune"}, str(path))


def load_search(path: str | Path, overrides: list[str] | None = None) -> Search:
    """The search of a file: its section `tune:` and the job around it, with overrides applied.

    The extremes of each key and some random draws are checked as jobs. Raises ConfigError as :func:`load_job` does, if
    there is no `tune:`, and for values of the space that are not valid, with these values.
    """
    tree = read_tree(path, overrides)
    if tree.get("tune") is None:
        raise ConfigError(
            f"{path}: has no section `tune:`; it names the keys to search, such as "
            "{space: {learner.lr: {type: loguniform, low: 1.0e-4, high: 1.0e-2}}}; jobs/recipes/tune.yaml is an example"
        )
    tune = _space(tree, str(path))
    base = {key: value for key, value in tree.items() if key != "tune"}
    job = parse(base, str(path))
    for values in values_to_check(tune.space, 64, job.run.seed):
        shown = ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())
        parse(set_values(base, values), f"{path}: tune.space draws {shown}")
    return Search(
        run=job.run, cluster=job.cluster, base={k: v for k, v in base.items() if k not in ("run", "cluster")}, tune=tune
    )


def _space(tree: dict[str, Any], where: str) -> TuneConfig:
    try:
        return TuneConfig.model_validate(tree["tune"])
    except ValidationError as error:
        sentences = (_sentence(e, tree["tune"]) for e in error.errors()[:3])
        raise ConfigError(f"{where}: tune." + "; tune.".join(sentences)) from None


def read_tree(path: str | Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """The keys of a YAML (or JSON) file with overrides applied, as nested dicts, unchecked. Raises ConfigError."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such job file; jobs/ has examples")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # bytes that are not UTF-8, or a date such as 2026-13-45
        raise ConfigError(f"{path}: not YAML: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: not a mapping of keys; a job file begins with a key such as `job: ppo`")
    return apply_overrides(tree, overrides or [])


def parse(tree: dict[str, Any], where: str) -> Any:
    """A checked job from nested dicts. Raises ConfigError with ``where`` and the path of the key."""
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
            raise ConfigError(f"override '{override}' is not key.path=value, such as learner.lr=1e-5")
        try:
            value = yaml.load(text, Loader=_Loader)
        except (yaml.YAMLError, ValueError):
            raise ConfigError(f"override '{override}': the value is not YAML; quote it") from None
        _set(tree, dotted.split("."), value, override)
    return tree


def set_values(tree: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``tree`` with the value of each dotted key set. Raises ConfigError."""
    tree = copy.deepcopy(tree)
    for dotted, value in values.items():
        _set(tree, dotted.split("."), value, f"{dotted}={value}")
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
    """What is wrong, with the path of the key, of one error of pydantic's."""
    where = ".".join(_key_path(error["loc"], tree))
    message = error["msg"].removeprefix("Value error, ")
    context = error.get("ctx", {})
    if error["type"] == "union_tag_invalid":
        variants = context["expected_tags"].replace("'", "").split(", ")
        near = difflib.get_close_matches(context["tag"], variants, n=1)
        message = f"unknown {context['discriminator']} '{context['tag']}'; "
        message += f"did you mean '{near[0]}'?" if near else f"known: {', '.join(variants)}"
    if error["type"] == "union_tag_not_found":
        message = f"the key {context['discriminator']} is missing"
    if error["type"] not in ("missing", "value_error") and not isinstance(error["input"], dict):
        message += f", got {error['input']!r}"
    return f"{where}: {message}" if where else message


def _key_path(loc: tuple[Any, ...], tree: Any) -> list[str]:
    """The keys of the file on the way to an error. pydantic's ``loc`` has a variant's name before the variant's keys.

    Example: ("ppo", "algorithm", "grpo", "kl", "coef") is algorithm.kl.coef in a file with job: ppo.
    """
    keys: list[str] = []
    node, after_variant = tree, False
    for position, part in enumerate(loc):
        default = DEFAULT_VARIANTS.get(keys[-1]) if keys else None
        if not after_variant and isinstance(node, dict) and part in (node.get("type", default), node.get("job")):
            after_variant = True
            continue
        after_variant = False
        if (isinstance(node, dict) and part in node) or (
            isinstance(node, list) and isinstance(part, int) and part < len(node)
        ):
            keys.append(str(part))
            node = node[part]
        elif position < len(loc) - 1 or isinstance(node, dict | list):
            keys.append(str(part))
    return keys


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number, as YAML 1.2 does, and refuses a repeated key."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key '{key.value}' comes twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)
