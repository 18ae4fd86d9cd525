"""Pareto fronts and scores under budgets, against naive loops."""

import itertools
import math
import random

from rlhf_ray.quality import pareto


def test_the_front_is_what_a_naive_loop_finds():
    rng = random.Random(0)
    points = [tuple(rng.randrange(4) for _ in range(3)) for _ in range(60)]

    def beaten(p):
        return any(all(a >= b for a, b in zip(q, p, strict=True)) and q != p for q in points)

    assert pareto.front(points) == [i for i, p in enumerate(points) if not beaten(p)]
    assert pareto.front([(1.0, math.nan), (0.0, 0.0)]) == [1]
    assert pareto.front([]) == []


def test_equal_points_are_both_on_the_front():
    equal = [(1.0, -1.0), (1.0, -1.0)]
    assert pareto.front(equal) == [0, 1]
    assert not any(pareto.dominates(a, b) for a, b in itertools.permutations(equal, 2))


def test_over_budget_ranks_below_all_within_and_by_the_excess():
    budgets = {"kl": 2.0, "length": 10.0}
    points = [
        ({"kl": 1, "length": 9}, -50),
        ({"kl": 2.1, "length": 1}, 99),
        ({"kl": 4, "length": 1}, 99),
        ({"kl": math.nan, "length": 1}, 99),
    ]
    scores = [pareto.score(quality, costs, budgets) for costs, quality in points]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == -50
    assert all(map(math.isfinite, scores))  # schedulers average them
    assert pareto.score(math.nan, {"kl": 0, "length": 0}, budgets) < scores[2]
