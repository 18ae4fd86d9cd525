"""One case of a benchmark against TRL: our side and its rivals made ready one by one, compared, then timed in turns."""

import argparse
import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rlhf_ray.models.load import DTYPES
from tests.benchmarks import workload
from tests.benchmarks.paired import in_turns, precisions, summary
from tests.benchmarks.sides import installed, ours, peer


@dataclass(frozen=True)
class Rival:
    """A peer process: how rows name it, its module in peers/, TRL's version, and what it is told."""

    name: str
    module: str
    trl: str
    spec: dict[str, Any]


def duel(case, job, rivals, computed, tolerance, rounds, kind="equal"):
    """A row for each rival that is installed. ``computed(our first answer, rival's)`` are our numbers for its check.

    Raises AssertionError where a number differs by more than the relative tolerance, or token counts are not the same.
    """
    rivals = [r for r in rivals if installed(r.trl)]
    with contextlib.ExitStack() as stack:
        mine = stack.enter_context(ours(job, kind))
        peers = [stack.enter_context(peer(r.name, r.module, r.trl, r.spec)) for r in rivals]
        checks = [(computed(mine.ready, p.ready), p.ready["check"]) for p in peers]
        for rival, (here, there) in zip(rivals, checks, strict=True):
            agree(rival.name, here, there, tolerance)
        seconds, answers = in_turns([mine, *peers], rounds)
    tokens = {name: {round(a["tokens"]) for a in given} for name, given in answers.items()}
    assert len(set.union(*tokens.values())) == 1, f"the sides did not do the same tokens: {tokens}"
    common = {
        "tokens": tokens["ours"].pop(),
        "load": [a["load"] for a in answers["ours"]],
        "ours_stages_s": stages(answers["ours"]),
    }
    return [
        {"case": f"{case}, {r.name}", **summary(seconds["ours"], seconds[r.name]), **common, "ours_check": here, "theirs_check": there}
        for r, (here, there) in zip(rivals, checks, strict=True)
    ]  # fmt: skip


def agree(name, mine, theirs, tolerance):
    """Raises AssertionError unless each number that both sides computed is the same within a relative tolerance."""
    for key, value in theirs.items():
        difference = abs(mine[key] - value) / max(abs(value), 1e-9)
        assert difference < tolerance, f"{key}: ours {mine[key]:.6g}, {name} {value:.6g}"


def stages(answers):
    """Median seconds of the stages of our step."""
    found = [{k: v for k, v in a["metrics"].items() if k.startswith("time/")} for a in answers]
    return {k: float(np.median([f[k] for f in found])) for k in found[0]}


def arguments(description):
    """Command line of these benchmarks: rounds, vocabularies, kinds of lengths, precisions, quick. Returns it with the size."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each side")
    parser.add_argument("--vocab", type=int, nargs="+", default=[2048, 32000])
    parser.add_argument("--kind", nargs="+", default=["skewed", "equal"], help="of response lengths")
    parser.add_argument(
        "--precision", nargs="+", choices=DTYPES, help="default: float32, and bfloat16 where it is faster"
    )
    parser.add_argument("--quick", action="store_true", help="a tiny model and short responses: does it run at all")
    parser.add_argument("--large", action="store_true", help="half a billion parameters, for a GPU")
    args = parser.parse_args()
    args.precision = args.precision or precisions("cuda" if torch.cuda.is_available() else "cpu")
    return args, workload.QUICK if args.quick else workload.LARGE if args.large else workload.FULL
