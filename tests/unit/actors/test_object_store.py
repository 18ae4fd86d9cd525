"""Room in the object store for two versions of the weights and a step."""

from rlhf_ray.actors.object_store import store_remark


def test_a_store_that_is_too_small_is_remarked_with_the_size_it_needs():
    nodes = [{"object_store_memory": 40e9}, {"object_store_memory": 31e9}]
    assert store_remark(15.2e9, 10_000_000, nodes) is None  # 30.4 GB and 0.29 GB
    remark = store_remark(15.2e9, 100_000_000, nodes)  # 30.4 GB and 2.9 GB
    assert "has room for 31.0 GB" in remark
    assert "take up to 33.3 GB" in remark
    assert "--object-store-memory=34000000000" in remark


def test_the_bundles_of_a_trial_do_not_say_how_large_the_store_is():
    assert store_remark(1e15, 0, [{"CPU": 1.0}]) is None
