"""What each kind of job needs before it can start."""

from __future__ import annotations

from ..actors.placement import Demand, worker_demand
from ..config import Answers, Job, RLJob, Supervised


def demand_of(job: Job) -> Demand:
    """The workers of each role that a job needs."""
    if isinstance(job, RLJob):
        return worker_demand(learner=job.learner, rollout=job.rollout, rewards=job.all_rewards)
    if isinstance(job, Supervised):
        return worker_demand(learner=job.learner)
    if isinstance(job, Answers):
        return worker_demand(rollout=job.rollout, rewards=job.rewards)
    return Demand(counts={})
