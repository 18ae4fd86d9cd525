"""Where a job runs and what it leaves behind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .section import Section


class RunConfig(Section):
    """The run directory and what makes the run repeatable."""

    dir: str = Field("runs/default", min_length=1, description="Run directory; absolute under `ray job submit`.")
    seed: int = Field(0, ge=0, description="Seed of everything random in the job.")


class ClusterConfig(Section):
    """Which Ray cluster, and how its devices are shared out."""

    address: str | None = Field(
        None,
        description="Ray cluster to join ('auto' or an address); none starts a local one unless RAY_ADDRESS is set.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where models live; auto takes GPUs if Ray has any."
    )
    colocate: bool = Field(
        True, description="Whether rollout and learner share the GPUs in turns instead of owning some each."
    )
    gpus: dict[Literal["learner", "rollout", "reward"], Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="GPUs of one worker of a role: below 1 several share one, 0 is none; else 1, or equal shares of a colocated one.",
    )
    spread: bool = Field(
        False,
        description="Whether rollout and reward workers go round the nodes instead of filling one after the other.",
    )
    num_threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads of each worker; by default the cores of its node over the learner ranks there.",
    )
    deadline_s: float = Field(
        1800.0,
        gt=0,
        description="Seconds without a finished piece, micro-batch or bucket after which a stage counts as hung.",
    )
    price_per_gpu_hour: float | None = Field(
        None,
        ge=0,
        description="Price of an hour of one GPU (of one core where a job has no GPU); metrics and report then say what it costs.",
    )
    max_restarts: int = Field(3, ge=0, description="How many times dead workers are replaced before the run gives up.")


class CheckpointConfig(Section):
    """When to write checkpoints and how many to keep."""

    every: int = Field(0, ge=0, description="Steps between checkpoints; 0 writes one at the end only.")
    keep: int = Field(2, ge=1, description="How many of the newest checkpoints stay.")


class LogConfig(Section):
    """Where metrics go besides metrics.jsonl, which is always written."""

    tensorboard: bool = Field(False, description="Also write TensorBoard events to RUN/tensorboard.")
    wandb: str | None = Field(None, description="Also log to this Weights & Biases project (extra: wandb).")
    prometheus: bool = Field(
        True, description="Also show the newest values on the metrics endpoint of Ray's node, which Prometheus reads."
    )
    progress: bool = Field(True, description="Show a line for each step on the terminal.")
    every: int = Field(1, ge=1, description="Steps between the progress lines of supervised jobs.")
