"""A node that is lost takes with it what its workers have made, and the chunk is made again."""

import numpy as np
import pyarrow as pa
import pytest
import ray
from ray.cluster_utils import Cluster

from rlhf_ray.actors.group import WorkerGroup
from rlhf_ray.data.prompts import Prompts
from rlhf_ray.train.dispatch import Dispatcher, PendingRollouts, RolloutRequest
from tests.benchmarks.zero_cost import Engine, Scorer
from tests.helpers import ROOT

pytestmark = pytest.mark.integration
PROMPTS = Prompts([np.ones(16, np.int32)], pa.table({"example_id": [0], "prompt": ["p"]}), np.arange(1))


@pytest.mark.learning  # much like a killed worker, which CI has
def test_a_piece_on_a_lost_node_is_generated_again():
    num_samples = 40_000  # too large for Ray to send the piece with its reference
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=1, resources={"rollout": 1})
        ray.init(address=cluster.address, log_to_driver=False)

        def group(role, cls, resources):
            return WorkerGroup(
                role,
                cls,
                1,
                arguments=lambda index: {},
                options=lambda index: {
                    "num_cpus": 0,
                    "resources": resources,
                    "runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT)}},
                },
                deadline_s=60.0,
                max_restarts=2,
            )

        rollout, reward = group("rollout", Engine, {"rollout": 1}), group("reward", Scorer, {})
        dispatcher = Dispatcher(rollout=rollout, reward=reward, chunk_prompts=1, run_seed=0, deadline_s=60.0)
        request = RolloutRequest(step=0, version=0, prompts=[0], first_group=0, samples=num_samples)
        pending = PendingRollouts(dispatcher, request, PROMPTS)
        pending._start_chunk(pending.idle_workers.popleft(), pending.waiting_chunks.popleft())
        assert ray.wait([*pending.generating], timeout=60.0, fetch_local=False)[0]
        cluster.remove_node(node, allow_graceful=False)
        cluster.add_node(num_cpus=1, resources={"rollout": 1})
        pending.generate()
        batch = pending.scored()
        assert batch.sample.tolist() == list(range(num_samples))
        assert rollout.num_restarts == 1
    finally:
        ray.shutdown()
        cluster.shutdown()
