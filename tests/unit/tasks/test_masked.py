"""Masked language models: what is hidden, the loss of tokens against each sequence alone."""

import json

import numpy as np
import pytest
import torch

from rlhf_ray.config import ModelConfig, PretrainJob
from rlhf_ray.config.supervised import MaskConfig
from rlhf_ray.tasks.masked import TokenObjective, hide, prepare
from rlhf_ray.tasks.registry import task_kind
from rlhf_ray.toy import world as toy
from rlhf_ray.train import roles
from tests.unit.tasks.helpers import BERT, CPU, alone, head, job, ragged, rows, wordpiece


def test_masks_are_berts():
    text = " ".join(["the view was great"] * 12)
    batch = prepare(rows(*[{"text": text}] * 50), toy.tokenizer(), 64).batch
    size = 70
    seen = hide(batch, [1, 2], MaskConfig(), 69, size)
    chosen = seen.response_mask.astype(bool)
    free = batch.response_mask == 0
    assert not (chosen & free).any()
    share = chosen.sum() / (~free).sum()
    assert share == pytest.approx(0.15, abs=0.03)
    masked, same = seen.tokens[chosen] == 69, seen.tokens[chosen] == batch.tokens[chosen]
    assert masked.mean() == pytest.approx(0.8, abs=0.05)
    assert same.mean() == pytest.approx(0.1, abs=0.05)
    np.testing.assert_array_equal(seen.tokens[~chosen], batch.tokens[~chosen])
    np.testing.assert_array_equal(seen.targets, batch.tokens)
    again, other = (hide(batch, seed, MaskConfig(), 69, size) for seed in ([1, 2], [1, 3]))
    np.testing.assert_array_equal(again.tokens, seen.tokens)
    assert (other.tokens != seen.tokens).any()


def test_every_sequence_has_a_mask_and_a_word_is_masked_whole():
    batch = prepare(rows(*[{"text": "unlikely book"}] * 40), wordpiece(), 16).batch
    assert (hide(batch, [0], MaskConfig(probability=1e-9), 4, 18).response_lengths == 1).all()
    whole = hide(batch, [0], MaskConfig(probability=0.4, whole_words=True), 4, 18)
    for marks, words in zip(whole.sequences("response_mask"), batch.sequences("words"), strict=True):
        for word in {0, 1}:
            assert len(set(marks[words == word].tolist())) == 1
    assert len({tuple(m.tolist()) for m in whole.sequences("response_mask")}) > 1


@pytest.mark.parametrize("kind", ["masked", "tags"])
def test_the_loss_of_tokens_is_that_of_each_sequence_alone(kind):
    marks = [np.array([0, 1, 0, 1, 0]), np.array([1] * 9), np.array([0, 0, 1])]
    targets = [np.arange(len(m)) % 3 for m in marks]
    batch = ragged(response_mask=marks, targets=targets)
    plain, wrapped = head(kind, ("a", "b", "c") if kind == "tags" else ())
    objective = TokenObjective(kind)
    naive = 0.0
    for out, m, t in zip(alone(plain, batch), marks, targets, strict=True):
        log_p = out.logits[0].log_softmax(-1)
        naive -= sum(float(log_p[i, t[i]]) for i in range(len(m)) if m[i])
    found, metrics = objective.loss(wrapped, batch, CPU)
    assert float(found.detach()) == pytest.approx(naive, rel=1e-5)
    assert objective.weight(batch) == 12 == float(metrics[f"{kind}/accuracy"][1])
    with torch.no_grad():
        predicted = objective.predict(wrapped, batch, CPU)
    assert [len(p) for p in predicted] == [2, 9, 1]


def test_a_random_masked_model_gets_a_mask_token(tmp_path):
    model, tokenizer = roles.prepare_model(ModelConfig(init=BERT, tokenizer="toy"), tmp_path, 0, "masked")
    assert tokenizer.mask_token == "<mask>"
    values = json.loads((tmp_path / "init" / "config.json").read_text())
    assert values["vocab_size"] == len(tokenizer) == len(toy.tokenizer()) + 1
    assert values["architectures"] == ["BertForMaskedLM"]
    pretrain = job(PretrainJob, objective="masked")
    given = rows({"text": "the view was great"})
    made = task_kind(pretrain).build(pretrain, given, None, tokenizer)
    seen = made.view(made.data.train, [0, 0])
    assert seen.response_mask.sum() >= 1
    assert str(model.path).endswith("init")
