"""Several objectives at once: which points no other one beats, and one number to rank points by under budgets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

OVER_BUDGET = -1e3  # below any sensible metric: a point within its budgets always ranks before one that is not


def front(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points (more is better in every number) that no other point dominates: at least as good in all and
    better in one. Points with a nan are left out; equal points are all kept."""
    sound = [i for i, p in enumerate(points) if not any(math.isnan(v) for v in p)]
    return [i for i in sound if not any(dominates(points[j], points[i]) for j in sound)]


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether ``one`` is at least as good everywhere and better somewhere."""
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def score(quality: float, spent: Mapping[str, float], budgets: Mapping[str, float]) -> float:
    """``quality`` where nothing spent is over its budget; else OVER_BUDGET times one and the excess as a share of the
    budget, so that of two points over budget the nearer one ranks first. What cannot be measured (nan) is over."""
    shares = [math.inf if math.isnan(spent[name]) else spent[name] / budget for name, budget in budgets.items()]
    worst = math.inf if math.isnan(quality) else max(shares, default=0.0)
    return quality if worst <= 1 else OVER_BUDGET * min(worst, 1e3)  # finite: schedulers average
