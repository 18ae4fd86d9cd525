"""Texts of a class changed a little, and a classifier as a reward."""

from collections import Counter

import numpy as np
import pytest
import torch

from rlhf_ray.batch import from_sequences
from rlhf_ray.config import ClassifierReward, ConfigError, ModelConfig, RewardsConfig, parse
from rlhf_ray.data import augment, examples
from rlhf_ray.data.encode import encode_text
from rlhf_ray.data.examples import Rows, load
from rlhf_ray.models.load import create_model, load_model
from rlhf_ray.rewards.classifier import ClassifierScorer
from rlhf_ray.rewards.reward import RewardError, Samples, ScorerContext
from rlhf_ray.rewards.worker import RewardWorker
from rlhf_ray.tasks.registry import task_kind
from rlhf_ray.toy import world as toy
from tests.helpers import TINY

WORDS = [str(i) for i in range(200)]
LABELS = ("bad", "good", "mixed")


def classify(**more):
    job = {
        "job": "classify",
        "model": {"init": TINY, "tokenizer": "toy"},
        "data": {"path": "toy:reviews/labels", "size": 40},
    }
    return parse({**job, "num_steps": 1, "max_length": 64, **more}, "job")


def test_deletion_keeps_order_and_at_least_a_word():
    draw = np.random.default_rng(0)
    kept = augment.delete(WORDS, 0.3, draw)
    assert kept == [w for w in WORDS if w in set(kept)]
    assert len(kept) / len(WORDS) == pytest.approx(0.7, abs=0.1)
    assert all(len(augment.delete(["a", "b"], 0.99, draw)) == 1 for _ in range(20))


def test_swaps_keep_every_word():
    moved = augment.swap(WORDS, 0.1, np.random.default_rng(0))
    assert sorted(moved) == sorted(WORDS)
    assert 20 <= sum(a != b for a, b in zip(moved, WORDS, strict=True)) <= 40  # twenty swaps of two
    assert augment.swap(["a"], 0.1, np.random.default_rng(0)) == ["a"]


def test_a_copy_depends_on_seed_and_place_alone():
    rows = Rows([{"text": "a b c d e f", "label": "x"}, {"sentence": "a b c d e f", "label": 1}, {"text": 3}], "x")
    first = augment.change_rows(rows, "swap", 0.5, [1, 0])
    assert first == augment.change_rows(rows, "swap", 0.5, [1, 0])
    assert first != augment.change_rows(rows, "swap", 0.5, [1, 1])
    assert first[0]["text"] != first[1]["sentence"]
    assert [r.get("label") for r in first] == ["x", 1, None]
    assert first[2] == {"text": 3}


def test_only_training_texts_are_augmented_and_it_is_said(notices):
    plain, more = classify(), classify(augment={"copies": 3, "swap": 0.2})
    rows, held = (load(plain.data.model_copy(update={"split": s}), "data") for s in ("train", "heldout"))
    before, after = (task_kind(job).build(job, rows, held, toy.tokenizer()) for job in (plain, more))
    assert "data: augmented 40 examples by 3 copies of each (2 with delete 0.1, 1 with swap 0.2)" in notices
    assert len(after.data.train) == 4 * len(before.data.train)
    assert after.data.heldout.tokens.tolist() == before.data.heldout.tokens.tolist()
    assert after.data.train.take(range(40)).tokens.tolist() == before.data.train.tokens.tolist()
    for copy in range(1, 4):
        part = after.data.train.take(range(40 * copy, 40 * copy + 40))
        assert part.labels.tolist() == before.data.train.labels.tolist()
        assert part.example_id.tolist() == before.data.train.example_id.tolist()
    swapped = after.data.train.take(range(80, 120)).sequences()  # deletion, swap, deletion
    assert all(Counter(a) == Counter(b) for a, b in zip(swapped, before.data.train.sequences(), strict=True))
    assert set(after.sampler(0).indices(0, 160)) == set(range(160))


def test_an_augmentation_that_changes_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"augment: delete and swap are both 0"):
        classify(augment={"delete": 0, "swap": 0})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("classifier"))
    return create_model(ModelConfig(init=TINY, tokenizer="toy"), folder, toy.tokenizer(), 3, "classes", LABELS)


ALONE = ScorerContext(tokenizer=None, device="cpu", prints=None)


def samples(texts, **columns):
    """These completions, of empty prompts."""
    batch = from_sequences([[]] * len(texts), prompt_length=[0] * len(texts), example_id=range(len(texts)))
    return Samples(batch=batch, prompts=[""] * len(texts), completions=texts, columns=columns)


def test_a_classifiers_reward_is_the_probability_of_the_class(model):
    texts = ["the view was great .", "the staff was not awful . the price was cold ."]
    scorer = ClassifierScorer(ClassifierReward(name="c", path=model, micro_batch_tokens=8), ALONE)
    scores = scorer.score(samples(texts, label=["mixed", "bad"]))
    net = load_model("classes", model).eval()
    for text, label, p in zip(texts, ("mixed", "bad"), scores, strict=True):
        ids = torch.tensor(encode_text(toy.tokenizer(), text).ids)
        with torch.no_grad():
            probabilities = net(ids, torch.tensor([len(ids)])).softmax(-1)[0]
        assert p == pytest.approx(float(probabilities[LABELS.index(label)]), abs=1e-5)
    one = ClassifierScorer(ClassifierReward(name="c", path=model, label="mixed"), ALONE)
    assert one.score(samples(texts))[0] == pytest.approx(scores[0], abs=1e-5)


def test_a_class_that_the_classifier_has_not_is_bad_input(model):
    with pytest.raises(RewardError, match="has no class 'great'; it has bad, good, mixed"):
        ClassifierScorer(ClassifierReward(name="c", path=model, label="great"), ALONE)
    scorer = ClassifierScorer(ClassifierReward(name="c", path=model, column="kind"), ALONE)
    with pytest.raises(RewardError, match="no column 'kind' with the class; it has prompt, label; name another"):
        scorer.score(samples(["the view"], label=["bad"]))


def test_a_worker_has_a_classifier_judge_the_completion(model):
    term = ClassifierReward(name="c", path=model)
    worker = RewardWorker(RewardsConfig(terms=[term]), model)
    tokens = [np.array(toy.tokenizer()("verdict : the view was great .")["input_ids"])]
    batch = from_sequences(tokens, prompt_length=[2], example_id=[0], group=[0])
    rows = examples.to_table(Rows([{"prompt": "verdict :", "label": "good"}], "x"), [0])
    (score,) = worker.score(batch, rows)["reward_parts"][:, 0]
    assert score == pytest.approx(
        ClassifierScorer(term, ALONE).score(samples(["the view was great ."], label=["good"]))[0], abs=1e-6
    )
