"""The stacks of a hang come from every node that has a worker."""

import re
import time

import pytest
import ray
from ray.cluster_utils import Cluster

from rlhf_ray.actors.errors import GangTimeout
from rlhf_ray.actors.group import WorkerGroup
from tests.helpers import ROOT

pytestmark = pytest.mark.integration


class Sleeper:
    """Hangs on request."""

    def oversleep(self):
        time.sleep(600.0)


def test_a_worker_on_another_node_is_named_with_its_stack():
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "resources": {"node-0": 1}, "include_dashboard": False}
    )
    try:
        cluster.add_node(num_cpus=1, resources={"node-1": 1})
        ray.init(address=cluster.address, log_to_driver=False)
        environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
        workers = WorkerGroup(
            "learner",
            Sleeper,
            2,
            arguments=lambda index: {},
            options=lambda index: {"num_cpus": 0, "resources": {f"node-{index}": 1}, "runtime_env": environment},
            deadline_s=2.0,
            max_restarts=0,
            gang=True,
        )
        places = ray.get([workers.processes[actor] for actor in workers.actors], timeout=60.0)
        assert places[0][0] != places[1][0]
        with pytest.raises(GangTimeout) as caught:
            workers.broadcast("oversleep")
        dumps = re.split(r"worker (\d):\n", str(caught.value))
        assert dumps[1::2] == ["0", "1"]
        for dump, (_, pid) in zip(dumps[2::2], places, strict=True):
            assert f"Process {pid}" in dump
            assert "oversleep (" in dump
    finally:
        ray.shutdown()
        cluster.shutdown()
