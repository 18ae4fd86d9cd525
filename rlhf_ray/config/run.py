"""Options of the run directory, the cluster, checkpoints and logs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .section import Section


class RunConfig(Section):
    """The run directory and the seed."""

    dir: str = Field(
        "runs/default",
        min_length=1,
        description="Run directory; the same command continues in it. Absolute for submitted jobs.",
    )
    seed: int = Field(0, ge=0, description="Seed of all random numbers of the job.")


class ClusterConfig(Section):
    """Which Ray cluster to use, and how to share its devices."""

    address: str | None = Field(
        None,
        description="Ray cluster to join: 'auto' or an address; none: that of RAY_ADDRESS, or else a new local one.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Device of all models; auto takes GPUs if Ray has any."
    )
    colocate: bool = Field(
        True,
        description="Rollout workers and learners take turns on the same GPUs; false gives each its own, as "
        "rollout.ahead above 0 requires.",
    )
    gpus: dict[Literal["learner", "rollout", "reward"], Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="GPUs of one worker of a role: below 1 several workers share a GPU, 0 is none. A role that is not "
        "named gets 1, or an equal share of a GPU that roles share.",
    )
    spread: bool = Field(
        False,
        description="Place rollout and reward workers on the nodes in turn; false fills one node after the other.",
    )
    num_threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads of each worker; none: the cores of its node divided by the learner ranks there.",
    )
    deadline_s: float = Field(
        1800.0,
        gt=0,
        description="Seconds without a finished piece, micro-batch or bucket after which a stage counts as hung.",
    )
    price_per_gpu_hour: float | None = Field(
        None,
        ge=0,
        description="Price of an hour of one GPU, or of one core if the job has no GPU; metrics and report "
        "then show costs.",
    )
    max_restarts: int = Field(3, ge=0, description="How often dead workers are replaced before the run fails.")


class CheckpointConfig(Section):
    """When checkpoints are written and how many are kept."""

    every: int = Field(0, ge=0, description="Steps between checkpoints; 0 writes only one, at the end.")
    keep: int = Field(2, ge=1, description="How many of the newest checkpoints are kept.")


class LogConfig(Section):
    """Where metrics go in addition to metrics.jsonl, which is always written."""

    tensorboard: bool = Field(False, description="Write TensorBoard events to RUN/tensorboard.")
    wandb: str | None = Field(None, description="Weights & Biases project to log to (extra: wandb); none: no.")
    prometheus: bool = Field(
        True, description="Show the newest values on the metrics endpoint of Ray's node, for Prometheus."
    )
    progress: bool = Field(True, description="Print a line for each step on the terminal.")
    every: int = Field(1, ge=1, description="Steps between the progress lines of supervised jobs.")
