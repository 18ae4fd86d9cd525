"""What each supervised job does: its kind of model, its examples as Batches, its objective, and what its predictions are worth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from ..batch import Batch, cat
from ..config import (
    DPO,
    IPO,
    KTO,
    BadInput,
    ClassifyJob,
    ILQLJob,
    PreferenceJob,
    PretrainJob,
    QAJob,
    RewardJob,
    Seq2SeqJob,
    SFTJob,
    Supervised,
    TagJob,
)
from ..data import augment, batches, tasks
from ..data.examples import Rows
from ..data.sampler import Mixture, Sampler, Shares, balanced
from ..data.stream import Stream
from ..data.tokenizer import fingerprint
from ..learner.objectives import Objective
from ..quality import classes, intervals, reward_model, text
from ..run.events import notice
from .classify import ClassObjective
from .ilql import ImplicitQObjective
from .language_model import LanguageModelObjective
from .masked import TokenObjective
from .preference import DesirableObjective, PairObjective
from .qa import SpanObjective
from .reward_model import PairwiseObjective, RowObjective, StepObjective
from .seq2seq import Seq2SeqObjective

View = Callable[[Batch, Sequence[int]], Batch]
Judge = Callable[[list[np.ndarray]], dict[str, Any]]
Made = TypeVar("Made")


@dataclass(frozen=True)
class Task:
    """``view`` is what a step or an evaluation sees of a Batch, seeded by a list of integers; ``judge`` measures predictions on
    the first ``num_judged`` held-out examples (None: all); ``reference``: the objective wants the starting model's log-probs;
    ``classes`` (B,) are those that balanced sampling evens out, else ``shares`` says how often examples are drawn."""

    objective: Objective
    train: Batch
    heldout: Batch | None
    reference: bool = False
    view: View | None = None
    judge: Judge | None = None
    num_judged: int | None = None
    classes: np.ndarray | None = field(default=None, compare=False)
    shares: Shares = Shares()

    def sampler(self, seed: int) -> Sampler | Mixture:
        """The order in which the groups of ``train`` come. Raises BadInput where a part of a mixture has none."""
        if self.classes is not None:
            return balanced(self.classes, seed)
        first = np.unique(self.train.group, return_index=True)[1]
        return self.shares.sampler(self.train.example_id[first], seed)


def kind(job: Supervised) -> str:
    """The kind of model (models.load.CLASSES)."""
    if isinstance(job, PretrainJob):
        return "masked" if job.objective == "masked" else "policy"
    kinds: dict[type, str] = {
        RewardJob: "scalar", ClassifyJob: "classes", TagJob: "tags", QAJob: "span", ILQLJob: "values", Seq2SeqJob: "seq2seq",
    }  # fmt: skip
    return kinds.get(type(job), "policy")


def labels(job: Supervised, rows: Rows) -> tuple[str, ...]:
    """Names of a head's classes: those of the config, else those of the training examples."""
    if isinstance(job, ClassifyJob):
        return tuple(job.labels) if job.labels else tasks.labels_of(rows)
    if isinstance(job, TagJob):
        return (
            tuple(job.labels) if job.labels else tuple(sorted({str(t) for row in rows for t in row.get("tags") or ()}))
        )
    return ()


def build(job: Supervised, names: tuple[str, ...], tokenizer: Any, rows: Rows | Stream, heldout: Rows | None) -> Task:
    """The task of a job. Raises BadInput for examples that do not fit it."""
    if isinstance(rows, Rows) and isinstance(job, ClassifyJob | TagJob | QAJob):
        made = _headed(job, names, tokenizer, rows, heldout)
    else:
        made = _generative(job, tokenizer, rows, heldout)
    return replace(made, shares=rows.shares)


def _headed(job: Supervised, names: tuple[str, ...], tokenizer: Any, rows: Rows, heldout: Rows | None) -> Task:
    """Classes of texts or of words, or spans."""

    def both(make: Callable[[Rows], Made]) -> tuple[Made, Made | None]:
        return make(rows), None if heldout is None else make(heldout)

    longest = job.max_length
    if isinstance(job, ClassifyJob):
        train, held = both(lambda r: tasks.classified(r, tokenizer, longest, names))
        more = [tasks.classified(r, tokenizer, longest, names) for r in _augmented(job, rows)]
        train = cat([train, *more]).replace(group=np.arange(len(rows) * (1 + len(more))))
        return _classify(job, names, train, held)
    if isinstance(job, TagJob):
        train, held = both(lambda r: tasks.tagged(r, tokenizer, longest, names))
        return Task(TokenObjective("tags"), train, held, judge=None if held is None else partial(_tags, names, held))
    assert isinstance(job, QAJob)
    stride = job.stride
    windows, asked = both(lambda r: tasks.answered(r, tokenizer, longest, stride))
    judge = None if heldout is None or asked is None else partial(_answers, heldout, asked)
    return Task(SpanObjective(job.longest_answer), windows.batch, None if asked is None else asked.batch, judge=judge)


def _generative(job: Supervised, tokenizer: Any, rows: Rows | Stream, heldout: Rows | None) -> Task:
    """Language models, preferences and rewards, whose training examples may be streamed."""
    prepare, objective, reference = _prepare(job)
    longest = job.max_length

    def make(given: Rows) -> batches.Prepared:
        return prepare(given, tokenizer, longest)

    key = job.model_dump_json(include={"job", "objective", "separator", "max_length"})
    made = rows.prepared(make, key + fingerprint(tokenizer)) if isinstance(rows, Stream) else make(rows)
    train = _kept(made, rows, longest)
    held = None if heldout is None else _kept(make(heldout), heldout, longest)
    if isinstance(job, Seq2SeqJob):
        return _seq2seq(job, objective, tokenizer, heldout, train, held)
    judge: Judge | None = None
    view: View | None = None
    if isinstance(job, SFTJob) and job.neftune_alpha:
        view = batches.seeded
    if isinstance(job, RewardJob) and held is not None and job.objective in ("pairwise", "labelled"):
        judge = partial(_scores, held, objective.unit is not None)
    if isinstance(job, PretrainJob) and job.objective == "masked":
        view = _masks(job, tokenizer)
    return Task(objective, train, held, reference=reference, view=view, judge=judge)


def _prepare(job: Supervised) -> tuple[Callable[[Rows, Any, int], batches.Prepared], Objective, bool]:
    """How rows become a Batch, the objective, and whether it wants the starting model's log-probs."""
    if isinstance(job, PreferenceJob):
        if isinstance(job.objective, KTO):
            return batches.desirable, DesirableObjective(job.objective), True
        return batches.pairs, PairObjective(job.objective), isinstance(job.objective, DPO | IPO)
    if isinstance(job, RewardJob):
        made: dict[str, tuple[Callable[[Rows, Any, int], batches.Prepared], Objective]] = {
            "pairwise": (batches.pairs, PairwiseObjective(job.centre_coef)),
            "labelled": (batches.labelled, RowObjective("labelled")),
            "scores": (batches.scored, RowObjective("scores")),
            "steps": (partial(batches.stepwise, separator=job.separator), StepObjective()),
        }
        return *made[job.objective], False
    if isinstance(job, ILQLJob):
        return (
            batches.rewarded,
            ImplicitQObjective(
                gamma=job.gamma,
                expectile=job.expectile,
                conservative_coef=job.conservative_coef,
                behaviour_coef=job.behaviour_coef,
            ),
            False,
        )
    if isinstance(job, PretrainJob) and job.objective == "masked":
        return tasks.masked_text, TokenObjective("masked"), False
    if isinstance(job, Seq2SeqJob):
        longest = job.evaluate.longest or job.max_length
        return (
            batches.translations,
            Seq2SeqObjective(label_smoothing=job.label_smoothing, max_new_tokens=longest),
            False,
        )
    if isinstance(job, SFTJob):
        return batches.supervised, LanguageModelObjective(neftune_alpha=job.neftune_alpha), False
    return batches.language_model, LanguageModelObjective(), False


def _kept(made: batches.Prepared, rows: Rows | Stream, max_length: int) -> Batch:
    if made.dropped:
        longest = f"max_length {max_length}"
        notice(f"{rows.option}: {made.dropped} of {len(rows)} examples are longer than {longest}, left out")
    return made.batch


def _masks(job: PretrainJob, tokenizer: Any) -> View:
    m, size = job.mask, len(tokenizer)
    return lambda batch, seed: tasks.mask(batch, seed, m.probability, m.whole_words, tokenizer.mask_token_id, size)


def _augmented(job: ClassifyJob, rows: Rows) -> list[Rows]:
    """Changed copies of the training rows, each by the next of the operations; a line says what was done."""
    if job.augment is None:
        return []
    shares = {name: share for name in augment.OPERATIONS if (share := getattr(job.augment, name)) > 0}
    kinds = [list(shares)[i % len(shares)] for i in range(job.augment.copies)]
    copies = [augment.changed(rows, kind, shares[kind], [job.run.seed, i]) for i, kind in enumerate(kinds)]
    done = ", ".join(f"{kinds.count(kind)} with {kind} {share:g}" for kind, share in shares.items() if kind in kinds)
    notice(f"data: augmented {len(rows)} examples by {len(copies)} copies of each ({done})")
    return copies


def _classify(job: ClassifyJob, names: tuple[str, ...], train: Batch, heldout: Batch | None) -> Task:
    given = train.labels[:, 0].astype(int)
    counts = np.bincount(given, minlength=len(names))
    absent = [n for n, c in zip(names, counts, strict=True) if not c]
    if absent:
        raise BadInput(f"data: no example of class {', '.join(absent)}; remove it from labels, or add examples")
    weights = classes.weights(counts, job.class_weights, job.effective_beta)
    shown = ", ".join(f"{n} {c} (weight {w:.2f})" for n, c, w in zip(names, counts, weights, strict=True))
    notice(f"data: classes {shown}; sampling {job.sampling}, gamma {job.gamma:g}")
    return Task(
        ClassObjective(tuple(weights), job.gamma), train, heldout,
        judge=None if heldout is None else partial(_classes, names, heldout),
        classes=given if job.sampling == "balanced" else None,
    )  # fmt: skip


def _classes(names: tuple[str, ...], heldout: Batch, found: list[np.ndarray]) -> dict[str, Any]:
    truth = heldout.labels[:, 0].astype(int)
    probability = np.stack(found)
    measured = classes.classification([names[t] for t in truth], [names[i] for i in probability.argmax(1)], names)
    right = (probability.argmax(1) == truth).astype(float)
    bins = reward_model.reliability(probability.max(1), right)
    return measured | {"calibration_error": reward_model.calibration_error(bins), "reliability": bins}


def _tags(names: tuple[str, ...], heldout: Batch, found: list[np.ndarray]) -> dict[str, Any]:
    truth = heldout.targets[heldout.response_mask.astype(bool)]
    return classes.classification([names[t] for t in truth], [names[i] for i in np.concatenate(found)], names)


def _seq2seq(
    job: Seq2SeqJob, objective: Objective, tokenizer: Any, rows: Rows | None, train: Batch, heldout: Batch | None
) -> Task:
    wanted = job.evaluate
    if rows is None or heldout is None or not wanted.translated:
        return Task(objective, train, heldout)
    text.sacrebleu()  # its absence shows before anything is trained
    column = "completion" if "prompt" in rows[0] else "target"
    references = [[str(rows[int(i)][column])] for i in heldout.example_id[: wanted.translated]]
    judge = partial(_translations, tokenizer, references, wanted.language)
    return Task(objective, train, heldout, judge=judge, num_judged=wanted.translated)


def _translations(
    tokenizer: Any, references: list[list[str]], language: str | None, found: list[np.ndarray]
) -> dict[str, Any]:
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in found]
    return {"bleu": text.bleu(texts, references, language), "chrf": text.chrf(texts, references)}


def _scores(heldout: Batch, paired: bool, found: list[np.ndarray]) -> dict[str, Any]:
    return reward_model.report(heldout, np.array(found), paired)


def _answers(rows: Rows, windows: tasks.Windows, found: list[np.ndarray]) -> dict[str, Any]:
    """Exact match and F1: of each question's windows the best span, or none where no window prefers a span."""
    best: dict[int, tuple[float, str]] = defaultdict(lambda: (0.0, ""))
    for index, characters, (start, end, score) in zip(windows.batch.example_id, windows.characters, found, strict=True):
        if score > best[int(index)][0]:
            first, last = characters[int(start)], characters[int(end)]
            best[int(index)] = (float(score), rows[int(index)]["context"][int(first[0]) : int(last[1])])
    wanted = [list(row["answers"]["text"]) or [""] for row in rows]
    given = [best[i][1] for i in range(len(rows))]
    measured = {
        "exact_match": np.array([text.exact_match(g, w) for g, w in zip(given, wanted, strict=True)]),
        "f1": np.array([text.token_f1(g, w) for g, w in zip(given, wanted, strict=True)]),
    }
    estimates = {name: intervals.mean(values) for name, values in measured.items()}
    return {n: e.mean for n, e in estimates.items()} | {"intervals": {n: [e.low, e.high] for n, e in estimates.items()}}
