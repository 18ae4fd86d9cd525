"""The driver's own cost: the real loop, dispatcher and Ray actors, with an engine, a reward and a learner that cost nothing.

Milliseconds per 1,000 samples of a step, for 10^3 to 10^5 samples and 1 to 64 actors: wall-clock time, and CPU time of the
driver's process, which other load on the machine hardly touches. Growth must be no worse than linear: `ratio` is the
driver's CPU per sample at the smallest step over that of the row.
"""

import argparse
import statistics
import tempfile
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa

from rlhf_ray.actors.group import WorkerGroup
from rlhf_ray.actors.placement import cluster_nodes, plan_placement
from rlhf_ray.actors.session import Stop, ray_session
from rlhf_ray.config import RLJob
from rlhf_ray.data.prompts import Prompts
from rlhf_ray.jobs.kinds import demand_of
from rlhf_ray.run.directory import RunDir
from rlhf_ray.train.learner_group import LearnerGroup
from rlhf_ray.train.rl import RL
from rlhf_ray.train.setup import RLActors, RLData, RLSetup
from tests.benchmarks.paired import report
from tests.benchmarks.zero_cost import PROMPT, RESPONSE, Engine, Learner, Scorer

GROUP, EXAMPLES, STEPS = 8, 4096, 4


class IdleLearners(LearnerGroup):
    """A learner group with a rank that costs nothing."""

    def __init__(self, job, group):
        self.job, self.group, self.info = job, group, {}
        self.plan = plan_placement(job.cluster, demand_of(job), cluster_nodes())

    def load(self, directory):
        pass

    def export(self, directory, save_tokenizer):
        pass

    def annotate(self, batch, temperature, columns):
        """Also if the job needs no column: the transfer of one belongs to the driver's cost."""
        return super().annotate(batch, temperature, ["old_log_probs"])


class Timed(RL):
    """The loop, with a mark at the end of each step."""

    def finish_step(self, metrics):
        self.marks.append((time.perf_counter(), time.process_time()))
        super().finish_step(metrics)


def job(samples):
    """A GRPO job of ``samples`` samples a step."""
    return RLJob.model_validate(
        {
            "job": "ppo", "cluster": {"device": "cpu", "deadline_s": 600}, "model": {"path": "none"},
            "data": {"path": "none"}, "num_steps": STEPS, "log": {"progress": False},
            "algorithm": {"type": "grpo", "group_size": GROUP, "kl": {"coef": 0.0}},
            "rollout": {"prompts_per_step": samples // GROUP, "chunk_prompts": 64, "max_new_tokens": RESPONSE},
            "rewards": {"terms": [{"name": "r", "type": "rule", "rule": "word_share", "options": {"words": ["a"]}}]},
        }
    )  # fmt: skip


def measure(job, groups, directory):
    """Median seconds and driver CPU seconds of a step."""
    ids = np.arange(EXAMPLES)
    prompts = Prompts(
        [np.ones(PROMPT, np.int32)] * EXAMPLES, pa.table({"example_id": ids, "prompt": ["p"] * EXAMPLES}), ids
    )
    learner, rollout, reward = groups
    setup = RLSetup(
        actors=RLActors(learners=IdleLearners(job, learner), rollout=rollout, reward=reward, time_shared=False),
        data=RLData(
            prompts=prompts,
            heldout=None,
            pretraining=None,
            tokenizer=SimpleNamespace(save_pretrained=None),
            vocab_size=100,
        ),
    )
    with RunDir(job.model_copy(update={"run": job.run.model_copy(update={"dir": directory})})) as run:
        loop = Timed(job, run, setup, Stop())
        loop.marks = []
        loop.train()
    steps = np.diff(np.array(loop.marks), axis=0)
    return [statistics.median(column) for column in steps.T.tolist()]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 8, 64])
    args = parser.parse_args()
    rows = []
    with ray_session(job(GROUP).cluster):
        for actors in args.actors:
            options = {"num_cpus": 0, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}}
            groups = [
                WorkerGroup(
                    role, cls, count, arguments=lambda i: {}, options=lambda i, o=options: o, deadline_s=600.0, max_restarts=0
                )
                for role, cls, count in (
                    ("learner", Learner, 1), ("rollout", Engine, actors), ("reward", Scorer, max(1, actors // 4)),
                )
            ]  # fmt: skip
            groups[1].broadcast("take_counters")
            first = None
            for samples in args.samples:
                with tempfile.TemporaryDirectory() as directory:
                    wall, cpu = measure(job(samples), groups, directory)
                each, own = 1e6 * wall / samples, 1e6 * cpu / samples
                first = first or own
                rows.append(
                    {
                        "case": f"{samples} samples, {actors} actors", "ours_s": wall, "theirs_s": cpu,
                        "ratio": first / own, "wall_ms_per_1000": each, "cpu_ms_per_1000": own,
                    }
                )  # fmt: skip
                print(f"{rows[-1]['case']}: {each:.1f} ms per 1,000 samples, driver CPU {own:.1f} ms", flush=True)
            for group in groups:
                group.kill()
    report("driver overhead: seconds of a step (ours) and the driver's CPU seconds (theirs)", rows)


if __name__ == "__main__":
    main()
