"""Workers: reserves a job's share of the cluster, starts its worker groups there, and ends them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..actors.group import WorkerGroup
from ..actors.placement import Demand, Placement, cluster_nodes, plan_placement
from ..config import ClusterConfig, Common, ModelConfig, Reward, RewardsConfig, RolloutConfig
from ..learner.worker import Role
from ..models.load import resolve_model
from ..rewards.worker import RewardWorker
from ..rollout.worker import EngineResources, RolloutWorker
from ..run.events import notice
from .learner_group import LearnerGroup
from .startup import startup_part


class Workers:
    """A job's workers. The end of the ``with`` block ends all groups that were started and frees what was reserved.

    Processes start in the background. So start all groups, then wait for them, then call them.
    """

    def __init__(self, cluster: ClusterConfig, demand: Demand) -> None:
        """Plans and reserves. Raises BadInput if the cluster has no room for the ``demand``."""
        self.cluster = cluster
        self.plan = plan_placement(cluster, demand, cluster_nodes())
        for line in self.plan.lines():
            notice(line)
        with startup_part("reserving CPUs and GPUs"):
            self.placement = Placement(self.plan)
        self.groups: list[WorkerGroup] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for group in self.groups:
            group.kill()
        self.placement.remove()

    def start_reward(self, config: RewardsConfig, run_dir: Path, *, has_policy: bool = True) -> WorkerGroup:
        """Starts the reward workers. If there is a policy, its tokenizer is in RUN/tokenizer.

        What user functions print goes to RUN/prints/worker-0/TERM.txt, one folder for each reward worker.
        """
        if any(term.type == "function" for term in config.terms):
            notice(f"what reward functions print is in {run_dir / 'prints'}")
        config = config.model_copy(update={"terms": [with_absolute_path(term) for term in config.terms]})
        return self._start(
            "reward",
            RewardWorker,
            config.num_workers,
            lambda index: {
                "config": config,
                "tokenizer": str(run_dir / "tokenizer") if has_policy else None,
                "device": self.plan.device_of("reward"),
                "num_threads": self.placement.num_threads("reward", index),
                "prints": str(run_dir / "prints" / f"worker-{index}"),
            },
        )

    def start_rollout(
        self, config: RolloutConfig, model: ModelConfig, eos: tuple[int, ...], max_tokens: int
    ) -> WorkerGroup:
        """Starts the rollout workers, for sequences of up to ``max_tokens`` tokens.

        Until the first sync they hold the model's own weights. ``eos``: tokens that end a response.
        """
        device = self.plan.device_of("rollout")
        return self._start(
            "rollout",
            RolloutWorker,
            config.num_workers,
            lambda index: {
                "config": config,
                "model": model,
                "eos": eos,
                "resources": EngineResources(device, self.placement.num_threads("rollout", index), max_tokens),
            },
        )

    def start_learners(self, job: Common, roles: Sequence[Role]) -> LearnerGroup:
        """Starts the learner ranks, without their models: see :meth:`LearnerGroup.start`."""
        learners = LearnerGroup(job, roles, self.placement)
        self.groups.append(learners.group)
        return learners

    def wait(self) -> None:
        """Waits until the processes of all groups run. Raises WorkerLost if one cannot start, or StageTimeout."""
        with startup_part("starting the workers' processes"):
            for group in self.groups:
                group.collect([actor.__ray_ready__.remote() for actor in group.actors], "start")

    def _start(self, role: str, cls: type, count: int, arguments: Any) -> WorkerGroup:
        group = WorkerGroup(
            role,
            cls,
            count,
            arguments=arguments,
            options=lambda index: self.placement.options(role, index),
            deadline_s=self.cluster.deadline_s,
            max_restarts=self.cluster.max_restarts,
        )
        self.groups.append(group)
        return group


def load_learner_models(learners: LearnerGroup) -> None:
    """Joins the ranks and loads their models; says what makes them slower than they could be."""
    with startup_part("loading the learner's models"):
        learners.start()
    for remark in learners.remarks():
        notice(remark)


def build_engines(rollout: WorkerGroup) -> None:
    """Builds the engines; says which decode slower than they could. Raises BadInput, as the engines do."""
    with startup_part("building the rollout engines"):
        remarks = [decoding.remark for decoding in rollout.broadcast("check")]
    for remark in dict.fromkeys(remark for remark in remarks if remark):
        notice(remark)


def build_reward_terms(reward: WorkerGroup, max_tokens: int = 0) -> None:
    """Builds the reward terms. Raises RewardError or BadInput if one cannot score sequences of ``max_tokens``."""
    with startup_part("building the reward terms"):
        reward.broadcast("check", max_tokens)


def with_absolute_path(term: Reward) -> Reward:
    """The term with a path that means the same to a worker, whose working directory may be another."""
    if term.type == "rule":
        return term
    if term.type == "function":
        return term.model_copy(update={"path": str(Path(term.path).expanduser().absolute())})
    return term.model_copy(update={"path": resolve_model(term.path)})
