"""The Grafana dashboard asks only for metrics that the code exports."""

import ast
import itertools
import json
import re
from pathlib import Path

import pytest

from rlhf_ray.run.sinks import COUNTED, exported_name, gauge_name

ROOT = Path(__file__).parents[3]
FILE = ROOT / "cluster" / "grafana.json"
METRIC = re.compile(r"[a-z_0-9]+(/[a-z_0-9]+)+")
TREES = [ast.parse(f.read_text()) for f in sorted((ROOT / "rlhf_ray").rglob("*.py"))]


def nodes(kind):
    return (node for tree in TREES for node in ast.walk(tree) if isinstance(node, kind))


def stages():
    """Names of the stages that the loops time, and what no stage took."""
    timed = {
        call.args[0].value
        for call in nodes(ast.Call)
        if isinstance(call.func, ast.Attribute) and call.func.attr == "phase" and isinstance(call.args[0], ast.Constant)
    }
    assert {"rollout", "learn", "sync"} <= timed
    return {*timed, "start", "other"}


def exported():
    """Names on the endpoint: of the metrics named in the code, with what its f-strings can be filled with."""
    fills = {
        "time/{}": stages(),
        "usage/{}/device_seconds": stages(),
        "usage/{}/cost": stages(),
        "{}/mfu": {"actor", "critic"},
        "evaluate/{}": {"reward", "kl", "length"},
    }
    written = {n.value for n in nodes(ast.Constant) if isinstance(n.value, str) and METRIC.fullmatch(n.value)}
    for node in nodes(ast.JoinedStr):
        text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        written |= {text.format(fill) for fill in fills.get(text, ())}
    return {exported_name(m) for m in written} | {f"ray_rlhf_{c}_total" for c in COUNTED.values()} | {"ray_rlhf_step"}


def expressions(tree):
    """Every query of a dashboard, those of its variables too."""
    if isinstance(tree, dict):
        found = [tree[key] for key in ("expr", "query") if isinstance(tree.get(key), str)]
        return found + list(itertools.chain.from_iterable(map(expressions, tree.values())))
    return list(itertools.chain.from_iterable(map(expressions, tree))) if isinstance(tree, list) else []


def unknown(tree):
    """Names in a dashboard's queries that nothing exports."""
    there = exported()
    words = {w for text in expressions(tree) for w in re.findall(r"\bray_\w+", text)}
    return sorted(words - there)


def test_every_query_names_metrics_that_exist():
    tree = json.loads(FILE.read_text())
    assert len([e for e in expressions(tree) if "ray_rlhf_" in e]) > 30
    assert not unknown(tree)


def test_a_query_of_something_else_is_found():
    tree = {"panels": [{"targets": [{"expr": "rate(ray_rlhf_rewards_mean[5m]) + ray_rlhf_reward_mean"}]}]}
    assert unknown(tree) == ["ray_rlhf_rewards_mean"]


def test_panels_have_places_of_their_own():
    panels = json.loads(FILE.read_text())["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    taken = [(x, y) for p in panels for x in range(p["gridPos"]["x"], p["gridPos"]["x"] + p["gridPos"]["w"])
             for y in range(p["gridPos"]["y"], p["gridPos"]["y"] + p["gridPos"]["h"])]  # fmt: skip
    assert len(set(taken)) == len(taken)
    assert all(p["gridPos"]["x"] + p["gridPos"]["w"] <= 24 for p in panels)


@pytest.mark.parametrize(
    ("metric", "name"), [("reward/mean", "rlhf_reward_mean"), ("reward/my term-2/std", "rlhf_reward_my_term_2_std")]
)
def test_names_are_what_prometheus_takes(metric, name):
    assert gauge_name(metric) == name
    assert re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", exported_name(metric))
