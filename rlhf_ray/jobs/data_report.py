"""What `rlhf-ray data` says: rows, lengths in tokens, duplicates, labels and leakage of a job's data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..config import DataConfig, Job, SingleJob
from ..config.jobs import STAGE
from ..data import check
from ..data.examples import load
from ..data.tokenizer import load_tokenizer
from ..models.load import resolve_model
from .kinds import kind_of


def data_report(job: Job) -> Iterator[str]:
    """Sentences on the data of a job, or of each stage of a pipeline; data that an earlier stage will write is left out."""
    stages = kind_of(job).stages(job)
    for name, stage in stages.items():
        needs = kind_of(stage).needs(stage)
        sections = {option: needs.data.get(option) for option in ("data", "evaluate.data")}
        rows_by_option = {
            option: load(section, option)
            for option, section in sections.items()
            if section is not None and not _waits(section)
        }
        tokenizer = _tokenizer(stage, stages)
        yield f"{name}: {stage.job}" if name else stage.job
        for rows in rows_by_option.values():
            if tokenizer is None:
                yield f"{rows.source}: {len(rows)} rows (no tokenizer yet, so their lengths are not known)"
            else:
                yield from check.lines(rows, tokenizer, dict(needs.token_limits))
        if len(rows_by_option) == 2:
            yield check.leakage(rows_by_option["data"], rows_by_option["evaluate.data"])


def _tokenizer(job: SingleJob, stages: Mapping[str, SingleJob]) -> Any:
    """The tokenizer of a job's model, or that of the earlier stage that it comes from; None if it does not exist yet."""
    while (model := kind_of(job).needs(job).model) is not None:
        name = model.tokenizer or model.path or ""
        if not name.startswith(STAGE):
            return load_tokenizer(model, resolve_model(model.path) if model.path else None, ends=False)
        job = stages[name.removeprefix(STAGE)]
    return None


def _waits(section: DataConfig) -> bool:
    """Whether a source of the section is what an earlier stage will write."""
    return any(source.path.startswith(STAGE) for source in section.sources)
