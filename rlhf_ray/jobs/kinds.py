"""Every kind of job, by the value of `job:`."""

from __future__ import annotations

from typing import Any

from ..actors.placement import Demand
from ..config import Job
from .evaluate import EVALUATE
from .kind import JobKind
from .pipeline import PipelineKind, pipeline_kind
from .rl import RL
from .sample import SAMPLE
from .score import SCORE
from .supervised import SUPERVISED
from .tokenizer import TOKENIZER

STAGES: dict[str, JobKind[Any]] = {
    "ppo": RL,
    **SUPERVISED,
    "evaluate": EVALUATE,
    "sample": SAMPLE,
    "score": SCORE,
    "tokenizer": TOKENIZER,
}
"""Kinds of job that may be a stage of a pipeline."""

PIPELINE: PipelineKind = pipeline_kind(STAGES)
KINDS: dict[str, JobKind[Any]] = {**STAGES, "pipeline": PIPELINE}


def kind_of(job: Job) -> JobKind[Any]:
    """The kind of a job."""
    return KINDS[job.job]


def demand_of(job: Job) -> Demand:
    """The workers of each role that a job needs."""
    return kind_of(job).needs(job).demand
