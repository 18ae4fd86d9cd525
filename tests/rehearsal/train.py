"""The command `rlhf-ray` with pretended GPUs: `python -m tests.rehearsal.train train JOB.yaml ...`."""

import sys

from rlhf_ray.cli import main
from rlhf_ray.train import learner_group, workers
from tests.rehearsal.pretend import PretendLearner, PretendReward, PretendRollout

if __name__ == "__main__":
    learner_group.LearnerWorker = PretendLearner
    workers.RolloutWorker, workers.RewardWorker = PretendRollout, PretendReward
    sys.exit(main())
