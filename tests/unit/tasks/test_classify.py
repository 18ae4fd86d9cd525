"""Classifiers of texts: labels, long texts, the weighted and focal loss against each sequence alone."""

import numpy as np
import pytest
import torch

from rlhf_ray.config import BadInput, ClassifyJob
from rlhf_ray.data.examples import DataError
from rlhf_ray.tasks.classify import ClassObjective, labels_of, prepare
from rlhf_ray.tasks.registry import task_kind
from rlhf_ray.toy import world as toy
from tests.unit.tasks.helpers import CPU, alone, head, job, ragged, rows, wordpiece


def test_a_long_text_to_classify_is_cut_and_keeps_its_end_token():
    batch = prepare(rows({"text": "the view was great", "label": 1}), toy.tokenizer(), 4, ("0", "1")).batch
    assert toy.tokenizer().decode(batch.tokens) == "<bos> the view <eos>"
    assert batch.labels.tolist() == [[1.0]]


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_loss_of_classes_is_weighted_and_focal(kind, gamma):
    more = {} if kind == "bert" else {"model_type": "llama", "num_key_value_heads": 1}
    batch = ragged(response_mask=[np.zeros(n) for n in (5, 9, 3)], labels=np.array([[0.0], [2.0], [1.0]]))
    plain, wrapped = head("classes", ("a", "b", "c"), **more)
    weights, naive = (1.0, 2.0, 0.5), 0.0
    outs = alone(plain, batch)
    for out, label in zip(outs, (0, 2, 1), strict=True):
        p = float(out.logits[0].softmax(-1)[label])
        naive -= weights[label] * (1 - p) ** gamma * np.log(p)
    objective = ClassObjective(weights, gamma)
    assert float(objective.loss(wrapped, batch, CPU)[0].detach()) == pytest.approx(naive, rel=1e-4)
    assert objective.weight(batch) == 3.5
    with torch.no_grad():
        found = objective.predict(wrapped, batch, CPU)
    np.testing.assert_allclose(found, [out.logits[0].softmax(-1).numpy() for out in outs], atol=1e-5)


def test_a_class_without_an_example_is_refused():
    given = rows({"text": "may", "label": "a"}, {"text": "book", "label": "b"})
    classify = job(ClassifyJob, labels=["a", "b", "c"])
    with pytest.raises(BadInput, match="no example of class c"):
        task_kind(classify).build(classify, given, None, wordpiece())


def test_labels_come_from_the_data_where_none_are_given():
    given = rows({"text": "may", "label": 1}, {"text": "book", "label": 0})
    assert labels_of(job(ClassifyJob), given) == ("0", "1")


def test_labels_that_cannot_be_learnt():
    with pytest.raises(DataError, match="label is 'maybe'"):
        prepare(rows({"text": "may", "label": "maybe"}), wordpiece(), 8, ("no", "yes"))
    with pytest.raises(DataError, match="every label is '1'"):
        labels_of(job(ClassifyJob), rows({"text": "may", "label": 1}))
