"""Rollouts as Parquet files: those that were trained on, and those in flight at a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from ..batch import Batch
from .atomic import replace_file


def trajectory_file(run_dir: Path, step: int) -> Path:
    """RUN/trajectories/step-000012.parquet; steps are numbered from 0."""
    return run_dir / "trajectories" / f"step-{step:06d}.parquet"


def trajectory_files(run_dir: Path) -> list[Path]:
    """The files of RUN/trajectories, the earliest step first."""
    return sorted((run_dir / "trajectories").glob("step-*.parquet"))


def write_batch(file: Path, batch: Batch, reward_names: list[str]) -> None:
    """Replaces ``file`` with the Batch, a row a sequence, in one step.

    ``reward_names`` are the names of the columns of ``reward_parts``; they go into the schema's metadata.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    table = batch.to_arrow().replace_schema_metadata({"reward_parts": json.dumps(reward_names)})
    with replace_file(file) as temporary:
        pq.write_table(table, temporary)


def read_batch(file: Path) -> Batch:
    """The Batch of a file that :func:`write_batch` wrote."""
    return Batch.from_arrow(pq.read_table(file))
