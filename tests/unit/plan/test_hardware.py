"""GPUs by name."""

import pytest

from rlhf_ray.config import BadInput
from rlhf_ray.plan.hardware import GPUS, cluster, this_machine


@pytest.mark.parametrize(
    ("text", "says"),
    [("8xH900", "expected one of"), ("A100", "expected one of A100-40GB, A100-80GB"), ("", "expected one of")],
)
def test_unknown_gpus_are_bad_input(text, says):
    with pytest.raises(BadInput, match=says):
        cluster(text)


def test_gpus_are_found_by_name():
    assert len({g.name for g in GPUS}) == len(GPUS)
    assert (cluster("8 x h100").per_node, cluster("H200").device.name) == (8, "H200-141GB")


@pytest.mark.parametrize("nodes", [0, -1])
def test_a_cluster_without_nodes_is_refused(nodes):
    with pytest.raises(BadInput, match=f"--nodes {nodes}: give a whole number of at least 1"):
        cluster("8xH100", nodes)
    with pytest.raises(BadInput, match=f"--nodes {nodes}"):
        this_machine(nodes)
