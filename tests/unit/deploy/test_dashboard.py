"""The Grafana dashboard asks only for metrics that the code exports."""

import itertools
import json
import re
from pathlib import Path

import pytest

from rlhf_ray.run.metric_names import METRICS
from rlhf_ray.run.sinks import COUNTED, exported_name, gauge_name

ROOT = Path(__file__).parents[3]
FILE = ROOT / "cluster" / "grafana.json"
RESULTS_ONLY = "evaluate/{term}"  # of job: evaluate, which exports nothing


def exported_pattern(metric):
    """A regular expression of the names on the endpoint that an entry of the glossary stands for."""
    return exported_name(re.sub(r"\{\w+\}", "PART", metric)).replace("PART", "[a-z0-9_]+")


EXPORTED = [exported_pattern(metric.name) for metric in METRICS if metric.name != RESULTS_ONLY]
EXPORTED += [f"ray_rlhf_{counter}_total" for counter in COUNTED.values()] + ["ray_rlhf_step"]


def expressions(tree):
    """Every query of a dashboard, those of its variables too."""
    if isinstance(tree, dict):
        queries = [tree[key] for key in ("expr", "query") if isinstance(tree.get(key), str)]
        return queries + list(itertools.chain.from_iterable(map(expressions, tree.values())))
    return list(itertools.chain.from_iterable(map(expressions, tree))) if isinstance(tree, list) else []


def unknown(tree):
    """Names in a dashboard's queries that nothing exports."""
    names = {name for text in expressions(tree) for name in re.findall(r"\bray_\w+", text)}
    return sorted(name for name in names if not any(re.fullmatch(pattern, name) for pattern in EXPORTED))


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
    taken = [
        (x, y)
        for p in panels
        for x in range(p["gridPos"]["x"], p["gridPos"]["x"] + p["gridPos"]["w"])
        for y in range(p["gridPos"]["y"], p["gridPos"]["y"] + p["gridPos"]["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert all(p["gridPos"]["x"] + p["gridPos"]["w"] <= 24 for p in panels)


@pytest.mark.parametrize(
    ("metric", "name"), [("reward/mean", "rlhf_reward_mean"), ("reward/my term-2/std", "rlhf_reward_my_term_2_std")]
)
def test_names_are_what_prometheus_takes(metric, name):
    assert gauge_name(metric) == name
    assert re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", exported_name(metric))
