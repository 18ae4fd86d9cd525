"""Timings. Ray's authentication is set here, before anything imports Ray."""

from rlhf_ray.actors.environment import authenticate
from rlhf_ray.config import ClusterConfig

authenticate(ClusterConfig())
