"""Workers whose GPU is pretended: placed, put to sleep and woken as on GPUs, they compute on the CPU with gloo."""

from dataclasses import replace

from rlhf_ray.learner import zero
from rlhf_ray.learner.worker import LearnerWorker
from rlhf_ray.rewards.worker import RewardWorker
from rlhf_ray.rollout.worker import RolloutWorker

BUCKET = 10_000_000  # elements


def deepspeed_config(*arguments):
    """DeepSpeed's config with small buckets for reductions.

    By default they take 2 GB for each trained role as soon as they sleep once, and eight ranks share a memory here.
    """
    settings = standard_config(*arguments)
    settings["zero_optimization"]["reduce_bucket_size"] = BUCKET
    return settings


standard_config = zero.deepspeed_config


class PretendLearner(LearnerWorker):
    """A learner rank on the CPU."""

    def __init__(self, *, device, **arguments):
        assert device == "cuda"  # the placement has reserved a GPU
        zero.deepspeed_config = deepspeed_config
        super().__init__(device="cpu", **arguments)


class PretendRollout(RolloutWorker):
    """A rollout worker whose engine is on the CPU."""

    def __init__(self, *, resources, **arguments):
        assert resources.device == "cuda"
        super().__init__(resources=replace(resources, device="cpu"), **arguments)


class PretendReward(RewardWorker):
    """A reward worker on the CPU."""

    def __init__(self, *, device, **arguments):
        super().__init__(device="cpu", **arguments)
