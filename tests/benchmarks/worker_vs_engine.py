"""Generation through RolloutWorker as a Ray actor, streamed to the driver, against the bare engine in this process.

The same prompts of 16 tokens, 8 samples each, seeds, weights, forced lengths and precision, 64 rows at a time, so the same
tokens, which is checked. The ratio is the share of the engine's speed that the worker keeps.
"""

import itertools
import os

import numpy as np
import torch

from rlhf_ray.actors import environment
from rlhf_ray.batch import cat
from rlhf_ray.config import ClusterConfig, ModelConfig, RolloutConfig
from rlhf_ray.rollout.chunk import Chunk, sample_seed
from rlhf_ray.rollout.engine import Request
from rlhf_ray.rollout.worker import EngineResources
from tests.benchmarks import workload
from tests.benchmarks.duel import arguments
from tests.benchmarks.ours import NEVER, WORKERS
from tests.benchmarks.paired import compare, report

SAMPLES = 8


def through_worker(group, chunk):
    """Tokens of all samples in order, streamed from the actor a quarter at a time, as the driver does it."""
    import ray

    stream = group.actors[0].generate.options(num_returns="streaming").remote(-1, chunk, len(chunk) // 4)
    batch = cat([ray.get(piece) for piece in stream]).sorted()
    return [s[workload.PROMPT :] for s in batch.sequences()]


def through_engine(engine, chunk):
    """The same from the engine itself."""
    engine.add(
        [
            Request(id=i * SAMPLES + j, prompt=prompt, seed=sample_seed(chunk.run_seed, chunk.step, i, j), group=i)
            for i, prompt in enumerate(chunk.prompts)
            for j in range(SAMPLES)
        ]
    )
    found = {}
    while engine.busy:
        found |= {c.id: c.tokens for c in engine.step()}
    return [found[i] for i in range(len(chunk))]


def measure(size, vocab, kind, precision, rounds):
    """The row of one case, in a Ray session."""
    from rlhf_ray.actors.group import WorkerGroup

    draw, count = np.random.default_rng(1), size.samples // 4
    prompts = [draw.integers(3, vocab, workload.PROMPT).astype(np.int32) for _ in range(count)]
    numbers = list(range(count))
    chunk = Chunk(
        step=0,
        run_seed=0,
        prompts=prompts,
        example_id=numbers,
        group=numbers,
        first_sample=[0] * count,
        samples=SAMPLES,
    )
    engine = {"dtype": precision, "max_rows": size.samples}
    config = RolloutConfig(prompts_per_step=count, max_new_tokens=size.longest, engine=engine)
    resources = EngineResources("cpu", os.cpu_count() or 1, workload.PROMPT + size.longest)
    model = ModelConfig(path=workload.model(size.shape, vocab))
    arguments = {"config": config, "model": model, "eos": NEVER, "resources": resources}
    options = {"num_cpus": 1, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(os.cpu_count())}}}
    group = WorkerGroup(
        "rollout",
        WORKERS[kind],
        1,
        arguments=lambda _: arguments,
        options=lambda _: options,
        deadline_s=600.0,
        max_restarts=0,
    )
    try:
        bare = WORKERS[kind](**arguments).engine
        same = [through_worker(group, chunk), through_engine(bare, chunk)]
        assert all(map(np.array_equal, *same)), "the worker and the engine did not sample the same tokens"
        row = compare(lambda: through_worker(group, chunk), lambda: through_engine(bare, chunk), rounds)
    finally:
        group.kill()
    tokens = sum(map(len, same[0]))
    return {"case": f"V={vocab}, {kind}, {precision}", "tokens": tokens, **row}


def main():
    args, size = arguments(__doc__)
    environment.authenticate(ClusterConfig())
    from rlhf_ray.actors.session import ray_session

    torch.set_num_threads(os.cpu_count() or 1)
    with ray_session(ClusterConfig()):
        cases = itertools.product(args.vocab, args.kind, args.precision)
        report("worker against engine: seconds of 128 sequences", [measure(size, *case, args.rounds) for case in cases])


if __name__ == "__main__":
    main()
