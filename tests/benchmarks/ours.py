"""Our side of a benchmark: `rlhf-ray train` as it is, but that each step waits to be asked for and lengths are forced."""

import contextlib
import json
import os
import sys
from dataclasses import replace
from functools import cached_property

from rlhf_ray.actors import environment
from rlhf_ray.config import parse
from rlhf_ray.rollout.worker import RolloutWorker
from rlhf_ray.run import sinks
from tests.benchmarks import workload
from tests.benchmarks.gate import Finished, Gate

NEVER = (-1,)


class EqualLengths(RolloutWorker):
    """A rollout worker whose responses have the workload's lengths: no end token, and a limit for each row of the step."""

    kind = "equal"

    def __init__(self, config, model, eos, resources):
        super().__init__(config, model, NEVER, resources)

    @cached_property
    def engine(self):
        engine, longest = super().engine, self.config.max_new_tokens
        add = engine.add

        def add_with_limits(requests):
            sizes = workload.lengths(self.kind, len(requests), longest)
            add([replace(r, max_new_tokens=int(sizes[r.id])) for r in requests])

        engine.add = add_with_limits
        return engine


class SkewedLengths(EqualLengths):
    """The same with skewed lengths."""

    kind = "skewed"


WORKERS = {"equal": EqualLengths, "skewed": SkewedLengths}


class Sinks(sinks.Sinks):
    """Metrics as ever; then the gate. Both loops write their metrics last in a step."""

    gate = None

    def write(self, step, values):
        super().write(step, values)
        tokens = values.get("rollout/tokens") or values["step/tokens_per_second"] * values["time/step"]
        Sinks.gate(tokens=tokens, load=os.getloadavg()[0], metrics={k: float(v) for k, v in values.items()})


def main():
    """Runs the job of the first argument (JSON); the second is the kind of lengths."""
    Sinks.gate = Gate()
    job = parse(json.loads(sys.argv[1]), "benchmark")
    environment.authenticate(job.cluster)  # before Ray is imported
    from rich.console import Console

    from rlhf_ray.jobs import start
    from rlhf_ray.train import workers

    sinks.Sinks = Sinks
    workers.RolloutWorker = WORKERS[sys.argv[2]]
    with contextlib.suppress(Finished):
        start.run(job, Console(stderr=True))


if __name__ == "__main__":
    from tests.benchmarks.ours import main  # so that Ray's workers find the classes by this module's name

    main()
