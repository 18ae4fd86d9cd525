"""rlhf_ray: RLHF for language models as a distributed training service on Ray."""

__version__ = "0.1.0"
