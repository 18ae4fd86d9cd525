"""The Ray session of a command, as its workers see it."""

import ray

from rlhf_ray.actors.session import ray_session
from rlhf_ray.config import ClusterConfig


def test_no_worker_imports_scikit_learn(address):
    """It would be a quarter of each worker's start."""

    @ray.remote(num_cpus=0)
    def imported_with_a_model():
        import sys

        import rlhf_ray.models.load  # noqa: F401

        return {"transformers", "sklearn"} & set(sys.modules)

    with ray_session(ClusterConfig(address=address)):
        assert ray.get(imported_with_a_model.remote(), timeout=120) == {"transformers"}
