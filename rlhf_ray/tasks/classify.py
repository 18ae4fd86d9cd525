"""Classification of texts: weighted or focal cross-entropy, accuracy, F1 and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..algorithms import losses
from ..batch import Batch, cat
from ..config import BadInput, ClassifyJob
from ..data import augment
from ..data.encode import encode_text
from ..data.examples import DataError, Rows
from ..data.prepared import Example, Prepared, prepare_rows
from ..learner.objectives import Columns, Loss, PerRow
from ..quality import classes as class_measures
from ..quality import reward_model
from ..run.events import notice
from .base import Judge, Task, TaskData, TaskKind, prepare_data


@dataclass(frozen=True)
class ClassObjective(PerRow):
    """Cross-entropy of a sequence's class times the weight of that class; focal if ``gamma`` is above 0.

    The focal factor ``(1 - p)^gamma`` shrinks the loss of examples that are already predicted well
    (Lin et al. 2017, arXiv 1708.02002).
    """

    class_weights: tuple[float, ...]
    gamma: float = 0.0

    def weight(self, batch: Batch) -> float:
        """Rows, each counted by the weight of its class."""
        return float(np.asarray(self.class_weights)[batch.labels[:, 0].astype(int)].sum())

    def loss(self, model: Any, batch: Batch, device: torch.device) -> Loss:
        """Summed over rows."""
        c = Columns(batch, device)
        logits, classes = model(c.tokens, c.lengths), c.labels[:, 0].long()
        plain = F.cross_entropy(logits, classes, reduction="none")
        weights = torch.tensor(self.class_weights, device=device)[classes]
        loss = weights * (1 - torch.exp(-plain)) ** self.gamma * plain if self.gamma else weights * plain
        ones = torch.ones_like(plain)
        return loss.sum(), {
            "loss/cross_entropy": losses.metric(plain, ones),
            "class/accuracy": losses.metric(logits.argmax(-1) == classes, ones),
        }

    def predict(self, model: Any, batch: Batch, device: torch.device) -> list[np.ndarray]:
        """Probabilities (classes,) of each sequence."""
        c = Columns(batch, device)
        return list(model(c.tokens, c.lengths).softmax(-1).cpu().numpy())


def labels_of(job: ClassifyJob, rows: Rows) -> tuple[str, ...]:
    """The classes: those of the config, else the different labels of the rows, sorted.

    Raises DataError if the rows have fewer than two.
    """
    if job.labels:
        return tuple(job.labels)
    for index in range(len(rows)):
        rows.require(index, "label")
    labels = tuple(sorted({str(row["label"]) for row in rows}))
    if len(labels) < 2:
        raise DataError(f"{rows.source}: every label is {labels[0]!r}; a classifier needs two classes or more")
    return labels


def prepare(rows: Rows, tokenizer: Any, max_length: int, labels: Sequence[str]) -> Prepared:
    """Column text (or sentence) and label, one of ``labels``. A longer text is cut at the end; its last token is kept.

    Raises DataError for a label that is none of them.
    """
    class_of = {name: i for i, name in enumerate(labels)}

    def encode_row(rows: Rows, index: int) -> list[Example]:
        row = rows[index]
        column = "text" if "text" in row else "sentence"
        rows.require(index, column, "label")
        label = str(row["label"])
        if label not in class_of:
            raise DataError(f"{rows.place(index)}: label is {row['label']!r}, expected one of {', '.join(labels)}")
        ids = encode_text(tokenizer, rows.text(index, column)).ids
        ids = ids if len(ids) <= max_length else [*ids[: max_length - 1], ids[-1]]
        return [Example.without_loss(ids, labels=[float(class_of[label])])]

    return prepare_rows(rows, encode_row, max_length)


def augmented_copies(job: ClassifyJob, rows: Rows) -> list[Rows]:
    """Changed copies of the training rows, each by the next of the operations. A notice says what was done."""
    if job.augment is None:
        return []
    shares = {name: share for name in augment.OPERATIONS if (share := getattr(job.augment, name)) > 0}
    kinds = [list(shares)[i % len(shares)] for i in range(job.augment.copies)]
    copies = [augment.change_rows(rows, kind, shares[kind], [job.run.seed, i]) for i, kind in enumerate(kinds)]
    counts = ", ".join(f"{kinds.count(kind)} with {kind} {share:g}" for kind, share in shares.items() if kind in kinds)
    notice(f"data: augmented {len(rows)} examples by {len(copies)} copies of each ({counts})")
    return copies


def weigh_classes(job: ClassifyJob, labels: Sequence[str], classes: np.ndarray) -> tuple[float, ...]:
    """The weight of each class in the loss, from the ``classes`` (n,) of the training rows. A notice shows them.

    Raises BadInput for a class without an example.
    """
    counts = np.bincount(classes, minlength=len(labels))
    absent = [name for name, count in zip(labels, counts, strict=True) if not count]
    if absent:
        raise BadInput(f"data: no example of class {', '.join(absent)}; remove it from labels, or add examples")
    weights = class_measures.weights(counts, job.class_weights, job.effective_beta)
    shown = ", ".join(f"{n} {c} (weight {w:.2f})" for n, c, w in zip(labels, counts, weights, strict=True))
    notice(f"data: classes {shown}; sampling {job.sampling}, gamma {job.gamma:g}")
    return tuple(weights)


def judge_classes(labels: Sequence[str], data: TaskData) -> Judge | None:
    """Accuracy, F1 and calibration of the predicted probabilities of held-out rows."""
    if data.heldout is None:
        return None
    truth = data.heldout.labels[:, 0].astype(int)

    def judge(predictions: list[np.ndarray]) -> dict[str, Any]:
        probability = np.stack(predictions)
        predicted = probability.argmax(1)
        measures = class_measures.classification([labels[t] for t in truth], [labels[i] for i in predicted], labels)
        bins = reward_model.reliability(probability.max(1), (predicted == truth).astype(float))
        return measures | {"calibration_error": reward_model.calibration_error(bins), "reliability": bins}

    return judge


def build(job: ClassifyJob, rows: Rows, heldout: Rows | None, tokenizer: Any) -> Task:
    """A classifier of texts."""
    labels = labels_of(job, rows)

    def prepare_texts(rows: Rows, tokenizer: Any, max_length: int) -> Prepared:
        return prepare(rows, tokenizer, max_length, labels)

    data = prepare_data(job, prepare_texts, rows, heldout, tokenizer)
    copies = [prepare_texts(copy, tokenizer, job.max_length).batch for copy in augmented_copies(job, rows)]
    train = cat([data.train, *copies])
    data = replace(data, train=train.replace(group=np.arange(len(train))))
    classes = train.labels[:, 0].astype(int)
    return Task(
        objective=ClassObjective(weigh_classes(job, labels, classes), job.gamma),
        data=data,
        judge=judge_classes(labels, data),
        classes=classes if job.sampling == "balanced" else None,
    )


CLASSIFY = TaskKind(model="classes", build=build, labels=labels_of)
