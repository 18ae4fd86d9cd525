"""Which task a supervised job is, by ``job.task``."""

from __future__ import annotations

from typing import Any

from ..config import Supervised
from .base import TaskKind
from .classify import CLASSIFY
from .ilql import ILQL
from .language_model import LANGUAGE_MODEL
from .masked import MASKED
from .preference import DESIRABLE, PAIRS
from .qa import QA
from .reward_model import LABELLED, PAIRWISE, SCORED, STEPS
from .seq2seq import SEQ2SEQ
from .sft import SFT
from .tag import TAG

TASKS: dict[str, TaskKind[Any]] = {
    "pretrain_causal": LANGUAGE_MODEL,
    "pretrain_masked": MASKED,
    "sft": SFT,
    "dpo_pairs": PAIRS,
    "dpo_kto": DESIRABLE,
    "reward_pairwise": PAIRWISE,
    "reward_labelled": LABELLED,
    "reward_scores": SCORED,
    "reward_steps": STEPS,
    "ilql": ILQL,
    "classify": CLASSIFY,
    "tag": TAG,
    "qa": QA,
    "seq2seq": SEQ2SEQ,
}


def task_kind(job: Supervised) -> TaskKind[Any]:
    """The task of a job."""
    return TASKS[job.task]
