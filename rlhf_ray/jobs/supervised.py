"""Supervised jobs: what they need and how they are run. They differ by their task (tasks/) and by a few facts here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..config import Seq2SeqJob, Supervised
from ..quality.text import SACREBLEU
from ..run.outcome import failing
from .kind import JobKind, JobNeeds, Results, RunContext, Training, learner_in_words, learner_packages, log_packages


def describe(job: Supervised) -> list[str]:
    """A step's examples and its workers."""
    ranks, micro_batches = learner_in_words(job.learner)
    return [f"{job.job}: {job.num_steps} steps of {job.batch_size} examples on {ranks}, {micro_batches}"]


def run(job: Supervised, context: RunContext) -> Results:
    """Trains; returns the held-out metrics."""
    from ..train.setup import supervised_setup
    from ..train.supervised import SupervisedRun

    with supervised_setup(job, context.run.path) as setup:
        training = SupervisedRun(job, context.run, setup, context.stop, context.watch)
        with failing(lambda: training.step > 0):
            return dict(training.train())


def _kind(
    sequences_per_example: int = 1,
    token_limits: Callable[[Supervised], Mapping[str, int]] = lambda job: {"row": job.max_length},
    packages: Callable[..., Mapping[str, str]] = lambda job: {},
) -> JobKind[Supervised]:
    def needs(job: Supervised) -> JobNeeds:
        return JobNeeds(
            data={"data": job.data, "evaluate.data": job.evaluate.data},
            token_limits=token_limits(job),
            model=job.model,
            training=Training(
                learner=job.learner,
                num_steps=job.num_steps,
                sequences=sequences_per_example * job.batch_size,
                max_tokens=job.max_length,
            ),
            packages={**log_packages(job.log), **learner_packages(job.learner), **packages(job)},
        )

    return JobKind(needs=needs, describe=describe, run=run)


def _sides(job: Supervised) -> dict[str, int]:
    """The limits of an encoder-decoder: source and target have ``max_length`` each."""
    return dict.fromkeys(("source", "target", "prompt", "completion"), job.max_length)


def _bleu(job: Seq2SeqJob) -> dict[str, str]:
    scored = job.evaluate.data is not None and job.evaluate.translated > 0
    return {"sacrebleu": SACREBLEU} if scored else {}


SUPERVISED: dict[str, JobKind[Supervised]] = {
    "pretrain": _kind(),
    "sft": _kind(),
    "reward": _kind(sequences_per_example=2),
    "dpo": _kind(sequences_per_example=2),
    "ilql": _kind(),
    "classify": _kind(),
    "tag": _kind(),
    "qa": _kind(),
    "seq2seq": _kind(token_limits=_sides, packages=_bleu),
}
