"""The plan of devices: which worker gets which GPUs."""

import pytest

from rlhf_ray.config import BadInput, ClusterConfig
from rlhf_ray.placement import plan

COUNTS = {"learner": 2, "rollout": 2, "reward": 1}


def test_a_tensor_parallel_worker_owns_its_gpus():
    found = plan(ClusterConfig(colocate=False), COUNTS, {"CPU": 16, "GPU": 7}, {"rollout": 2})
    assert [b["GPU"] for b in found.bundles()] == [1, 1, 2, 2, 1]
    assert "2 rollout (2 GPUs each)" in found.lines()[0]


def test_colocated_workers_share_equal_slots():
    found = plan(ClusterConfig(), COUNTS, {"CPU": 16, "GPU": 2}, {"rollout": 1})
    assert [b["GPU"] for b in found.bundles()] == [1, 1]
    assert found.share["GPU"] < 1 / 3


@pytest.mark.parametrize(
    ("config", "gpus", "says"),
    [
        (ClusterConfig(colocate=False), 6, "needs 7 GPUs"),
        (ClusterConfig(), 8, "cluster.colocate=false"),
        (ClusterConfig(device="cpu", colocate=False), 0, "tensor_parallel_size=1"),
    ],
)
def test_tensor_parallelism_without_gpus_of_its_own_is_refused(config, gpus, says):
    with pytest.raises(BadInput, match=says):
        plan(config, COUNTS, {"CPU": 16, "GPU": gpus}, {"rollout": 2})
