"""Timings. Ray's authentication is set here, before anything imports Ray."""

from rlhf_ray.config import ClusterConfig
from rlhf_ray.driver.environment import authenticate

authenticate(ClusterConfig())
