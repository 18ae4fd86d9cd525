"""Measures of texts against known values, naive counts and the libraries they come from."""

import itertools

import pytest

from rlhf_ray.config import BadInput
from rlhf_ray.quality import text


@pytest.mark.parametrize(
    ("answer", "reference", "match", "f1"),
    [
        ("The  Norman conquest!", ["norman conquest"], 1, 1.0),
        ("in the 10th century", ["10th century", "tenth"], 0, 0.8),
        ("a", ["the"], 1, 1.0),  # nothing but articles: both are empty
        ("a", ["cat"], 0, 0.0),
        ("cat cat dog", ["cat dog dog"], 0, 2 / 3),
    ],
)
def test_squads_measures(answer, reference, match, f1):
    assert text.exact_match(answer, reference) == match
    assert text.token_f1(answer, reference) == pytest.approx(f1)


def test_references_are_read_as_datasets_have_them():
    assert text.references("x") == ["x"]
    assert text.references({"text": ["x", "y"], "answer_start": [1, 2]}) == ["x", "y"]
    assert text.references([1, 2]) == ["1", "2"]
    with pytest.raises(BadInput, match="a reference is None"):
        text.references(None)


def test_bleu_and_chrf_are_sacrebleus():
    metrics = pytest.importorskip("sacrebleu.metrics")
    texts, references = (
        ["the cat sat on the mat", "hello there"],
        [["the cat sat on a mat"], ["hello there", "hi there"]],
    )
    columns = [["the cat sat on a mat", "hello there"], ["the cat sat on a mat", "hi there"]]
    assert text.bleu(texts, references) == pytest.approx(metrics.BLEU().corpus_score(texts, columns).score)
    assert text.chrf(texts, references) == pytest.approx(metrics.CHRF().corpus_score(texts, columns).score)
    assert text.bleu(["我在这里生活"], [["我在这里生活"]], "zh") == pytest.approx(100)
    assert text.sentence_chrf(["abc"], [["abc"]]) == [pytest.approx(1)]


def test_rouge_l_is_the_longest_common_subsequence():
    pytest.importorskip("rouge_score")
    candidate, reference = "police killed the gunman", "police kill the gunman today"
    precision, recall = 3 / 4, 3 / 5
    assert text.rouge_l([candidate], [[reference, "x"]]) == [
        pytest.approx(2 * precision * recall / (precision + recall))
    ]


def test_diversity_counts_n_grams():
    assert text.distinct(["a b a b", "a b"], 2) == 2 / 4
    assert text.repetition("a b c a b c d", 3) == pytest.approx(1 / 5)
    assert text.distinct(["a"], 2) == text.repetition("a b") == 0


@pytest.mark.parametrize(("n", "right", "k"), [(6, 2, 1), (6, 2, 3), (6, 5, 2), (6, 0, 4), (5, 5, 5)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(n, right, k):
    draws = list(itertools.combinations(range(n), k))
    naive = sum(any(i < right for i in draw) for draw in draws) / len(draws)
    assert text.pass_at_k(n, right, k) == pytest.approx(naive)
    with pytest.raises(ValueError, match="needs at least 7"):
        text.pass_at_k(n, right, 7)
