"""Batches as Parquet: every rollout that was trained on, and rollouts in flight at a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from ..batch import Batch
from .atomic import replace_file


def path(run_dir: Path, step: int) -> Path:
    """RUN/trajectories/step-000012.parquet"""
    return run_dir / "trajectories" / f"step-{step:06d}.parquet"


def write(file: Path, batch: Batch, reward_names: list[str]) -> None:
    """Writes a Batch; the names of reward_parts' columns go into the schema's metadata. Replaces the file in one step."""
    file.parent.mkdir(parents=True, exist_ok=True)
    table = batch.to_arrow().replace_schema_metadata({"reward_parts": json.dumps(reward_names)})
    with replace_file(file) as part:
        pq.write_table(table, part)


def read(file: Path) -> Batch:
    """The Batch of a file that :func:`write` wrote."""
    return Batch.from_arrow(pq.read_table(file))
