"""The glossary of metrics is complete: every name that the source makes has an entry."""

import ast
import re

import pytest

from rlhf_ray.run.metric_names import METRICS, describe
from tests.helpers import ROOT

NAME = re.compile(r"[\w*]+(/[\w*]+)+")
OTHER_KEYS = {
    "part/*": "a column of RUN/evaluations; in metrics it is evaluate/part/*",
    "reward/by_difference": "a list of bins, in evaluation.json only",
    "reward/by_margin": "a list of bins, in evaluation.json only",
    "reward/reliability": "a list of bins, in evaluation.json only",
}


def text_of(node):
    """The text of a string or f-string, with * for what is filled in; None for any other expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "*" for part in node.values)
    return None


def metric_keys(tree):
    """Keys of dict displays, and subscripts that are assigned to, if they look like a metric: words with slashes."""
    keys = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            keys += node.keys
        elif isinstance(node, ast.DictComp):
            keys.append(node.key)
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            keys.append(node.slice)
    return {text for key in keys if (text := text_of(key)) and NAME.fullmatch(text)}


FILES = [file for file in (ROOT / "rlhf_ray").rglob("*.py") if file.parent.name != "toy"]  # toy's keys name datasets
SOURCE_KEYS = sorted(set().union(*(metric_keys(ast.parse(file.read_text())) for file in FILES)) - set(OTHER_KEYS))


def is_described(key):
    """Whether a key of the source, in which * stands for anything, has an entry; some keys only ever get evaluate/."""
    pattern = re.compile("(evaluate/)?" + ".+".join(map(re.escape, key.split("*"))))
    return describe(key) is not None or any(pattern.fullmatch(metric.name) for metric in METRICS)


def test_the_scan_finds_keys_of_all_forms():
    source = """
metrics = {"a/b": 1.0, f"c/{name}/mean": 2.0, "no metric": 3, "ray.io/id": 4} | {f"time/{n}": s for n, s in seconds}
metrics["d/e"] = 5.0
metrics["f/g"] += 6.0
"""
    assert metric_keys(ast.parse(source)) == {"a/b", "c/*/mean", "time/*", "d/e", "f/g"}


@pytest.mark.parametrize("key", SOURCE_KEYS)
def test_every_key_in_the_source_is_described(key):
    assert is_described(key), f"add {key} to rlhf_ray/run/metric_names.py"


def test_a_key_without_an_entry_is_found():
    assert len(SOURCE_KEYS) > 60
    assert not is_described("policy/new_metric")
    assert not is_described("reward/*/median")


def test_names_are_unique_and_every_entry_is_one_plain_sentence():
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert metric.unit
        assert metric.text[0].isupper()
        assert metric.text.endswith(".")
        assert len(metric.text.split()) <= 25


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("reward/mean", "reward/mean"),
        ("reward/helpful/mean", "reward/{term}/mean"),
        ("usage/learn/cost", "usage/{stage}/cost"),
        ("evaluate/part/helpful", "evaluate/part/{term}"),
        ("evaluate/loss/dpo", "evaluate/loss/dpo"),
        ("evaluate/f1", "evaluate/f1"),
        ("evaluate/helpful", "evaluate/{term}"),
    ],
)
def test_a_name_belongs_to_the_exact_entry_or_to_a_pattern(name, entry):
    assert describe(name).name == entry


@pytest.mark.parametrize("name", ["reward", "reward/a/b/mean", "kl", "", "loss/unknown", "evaluate/kl/reference"])
def test_other_names_belong_to_none(name):
    assert describe(name) is None
