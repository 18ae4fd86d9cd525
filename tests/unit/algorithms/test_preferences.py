"""Preference losses against naive loops over Python floats, and their objectives on a model."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_ray.algorithms import preferences
from rlhf_ray.algorithms.preferences import log1mexp, reference_point
from rlhf_ray.batch import from_sequences
from rlhf_ray.config import DPO, IPO, KTO, ORPO, SimPO
from rlhf_ray.models.log_probs import PolicyModel
from rlhf_ray.tasks.preference import DesirableObjective, PairObjective, log_ratios
from tests.helpers import TINY

BETA = 0.3


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


NAIVE = {
    "dpo": lambda c, r: -0.8 * math.log(sigmoid(BETA * (c - r))) - 0.2 * math.log(sigmoid(BETA * (r - c))),
    "ipo": lambda c, r: (c - r - 1 / (2 * BETA)) ** 2,
    "simpo": lambda c, r: -math.log(sigmoid(BETA * (c - r) - 0.5)),
    "orpo": lambda c, r: (
        -c
        - BETA
        * math.log(sigmoid(math.log(math.exp(c) / (1 - math.exp(c))) - math.log(math.exp(r) / (1 - math.exp(r)))))
    ),
}
MORE = {"dpo": {"label_smoothing": 0.2}, "simpo": {"margin": 0.5}}


@pytest.mark.parametrize("name", NAIVE)
@pytest.mark.parametrize("seed", range(4))
def test_a_pairwise_loss_is_the_naive_sum(name, seed):
    draw = torch.Generator().manual_seed(seed)
    chosen, rejected = (-torch.rand(7, generator=draw, dtype=torch.float64) * 3 - 0.01 for _ in range(2))
    total, metrics = getattr(preferences, name)(chosen, rejected, BETA, **MORE.get(name, {}))
    both = list(zip(chosen.tolist(), rejected.tolist(), strict=True))
    assert float(total) == pytest.approx(sum(NAIVE[name](c, r) for c, r in both), rel=1e-9)
    count, weight = metrics["preference/accuracy"]
    assert (float(count), float(weight)) == (sum(c > r for c, r in both), 7)


@pytest.mark.parametrize("seed", range(4))
def test_kto_is_the_naive_sum(seed):
    draw = torch.Generator().manual_seed(seed)
    ratio = torch.randn(9, generator=draw, dtype=torch.float64)
    desirable = torch.randint(0, 2, (9,), generator=draw)
    total, _ = preferences.kto(ratio, desirable, BETA, 0.7, 2.0, 0.5)
    naive = 0.0
    for r, w in zip(ratio.tolist(), desirable.tolist(), strict=True):
        naive += 2.0 * (1 - sigmoid(BETA * (r - 0.7))) if w else 0.5 * (1 - sigmoid(BETA * (0.7 - r)))
    assert float(total) == pytest.approx(naive, rel=1e-9)


def test_a_reference_point_is_never_negative():
    assert reference_point(torch.tensor([-3.0, 1.0])) == 0.0
    assert reference_point(torch.tensor([3.0, 1.0])) == 2.0


@pytest.mark.parametrize("x", [-1e-6, -0.5, -0.6931472, -5.0, -40.0])
def test_log1mexp_keeps_its_digits(x):
    result = float(log1mexp(torch.tensor(x, dtype=torch.float64)))
    assert result == pytest.approx(math.log(-math.expm1(x)), rel=1e-6)


def plain():
    torch.manual_seed(0)
    config = AutoConfig.for_model(**{**TINY, "vocab_size": 40, "initializer_range": 0.3})
    return AutoModelForCausalLM.from_config(config).eval()


def policy():
    return PolicyModel(plain(), "packed")


def pairs():
    """Three pairs with prompts of their own and a reference that differs from the policy."""
    draw, rows, masks = np.random.default_rng(0), [], []
    for size in (4, 2, 6):
        prompt = draw.integers(0, 40, size)
        for answer in draw.integers(1, 7, 2):
            rows.append(np.r_[prompt, draw.integers(0, 40, answer)])
            masks.append(np.r_[np.zeros(size), np.ones(answer)])
    return from_sequences(
        rows,
        response_mask=masks,
        group=np.repeat([0, 1, 2], 2),
        example_id=np.repeat([0, 1, 2], 2),
        prompt_length=np.repeat([4, 2, 6], 2),
        labels=np.array([[1.0, 0], [0, 0]] * 3),
        ref_log_probs=[np.where(m, -2.0 - draw.random(len(m)), 0) for m in masks],
    )


OBJECTIVES = [
    PairObjective(DPO(beta=BETA, label_smoothing=0.2)),
    PairObjective(IPO(beta=BETA)),
    PairObjective(ORPO(beta=BETA)),
    PairObjective(SimPO(beta=BETA, margin=0.5)),
    DesirableObjective(KTO(beta=BETA), reference_point=0.4),
]


def naive(objective, model, batch):
    """The objective's sum by one forward pass for each row."""
    scores, a = [], objective.config
    for row in range(len(batch)):
        one = batch.take([row])
        ids, mask = torch.tensor(one.tokens).long(), one.response_mask.astype(bool)
        with torch.no_grad():
            log_p = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        values = np.array([float(log_p[i - 1, ids[i]]) if mask[i] else 0.0 for i in range(len(ids))])
        if isinstance(a, DPO | IPO | KTO):
            values = values - one.ref_log_probs
        scores.append(values.sum() / (1 if isinstance(a, DPO | KTO) else mask.sum()))
    if isinstance(a, KTO):
        labels = batch.labels[:, 0]
        return sum(1 - sigmoid(BETA * (s - 0.4 if w else 0.4 - s)) for s, w in zip(scores, labels, strict=True))
    return sum(NAIVE[a.type](c, r) for c, r in zip(scores[0::2], scores[1::2], strict=True))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.config.type)
def test_an_objective_is_the_naive_sum_and_micro_batches_add_up(objective):
    model, batch = policy(), pairs()
    total = objective.loss(model, batch, torch.device("cpu"))[0].detach()
    assert float(total) == pytest.approx(naive(objective, plain(), batch), rel=1e-4)
    parts = [objective.loss(model, batch.take(batch.group == g), torch.device("cpu"))[0].detach() for g in range(3)]
    assert float(sum(parts)) == pytest.approx(float(total), rel=1e-5)
    assert objective.weight(batch) == (6 if isinstance(objective.config, KTO) else 3)


def test_a_policy_that_is_its_reference_has_no_preference():
    model, batch = policy(), pairs()
    dpo = PairObjective(DPO(beta=BETA))
    at = np.flatnonzero(batch.response_mask)
    with torch.no_grad():
        log_probs = model(*(torch.tensor(x).long() for x in (batch.tokens, batch.lengths, at)))[0].numpy()
    same = np.zeros(len(batch.tokens), np.float32)
    same[at] = log_probs
    loss, metrics = dpo.loss(model, batch.replace(ref_log_probs=same), torch.device("cpu"))
    assert float(loss.detach()) == pytest.approx(3 * math.log(2), rel=1e-5)
    assert abs(float(metrics["preference/margin"][0])) < 1e-4


def test_log_ratios_are_summed_over_each_response():
    batch = pairs()
    now = np.where(batch.response_mask, -1.0, 0.0).astype(np.float32)
    sums = log_ratios(batch.replace(old_log_probs=now))
    expected = [
        sum(a - b for a, b in zip(*row, strict=True))
        for row in zip(np.split(now, batch.offsets[1:-1]), batch.sequences("ref_log_probs"), strict=True)
    ]
    assert sums.tolist() == pytest.approx(expected)
    assert (sums != 0).all()


def test_the_reference_point_moves_the_loss():
    model, batch = policy(), pairs()
    desirable = batch.take(batch.labels[:, 0] == 1)
    moved = [
        replace(OBJECTIVES[-1], reference_point=z).loss(model, desirable, torch.device("cpu"))[0] for z in (0.0, 2.0)
    ]
    assert moved[1].detach() > moved[0].detach()
