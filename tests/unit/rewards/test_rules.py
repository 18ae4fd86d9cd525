"""The rules that ship with the package."""

import itertools

import numpy as np
import pytest

from rlhf_ray.config.rewards import RuleReward
from rlhf_ray.quality import text as quality
from rlhf_ray.rewards.reward import RewardError
from rlhf_ray.rewards.rules import bind_rule
from tests.unit.rewards.helpers import TALK, score_completions


@pytest.mark.parametrize(
    ("name", "options", "completion", "score"),
    [
        ("word_share", {"words": ["Warm"]}, "a warm, WARM day", 0.5),
        ("word_balance", {"positive": ["good"], "negative": ["bad"]}, "good good bad", 0.25),
        ("contains", {"text": "Yes"}, "oh yes", 1.0),
        ("length", {"target": 4}, "two words", 0.5),
        ("length", {"target": 4, "unit": "chars"}, "abcdef", 0.5),
        ("regex_match", {"pattern": r"\d+"}, "no number", 0.0),
        ("format", {"pattern": r"<a>.*</a>"}, " <a>x\ny</a> ", 1.0),
        ("coherence", {}, "the Cafe was fresh", 3 / 4),
        ("coherence", {}, "fresh view fresh view", 2 / 3),
        ("coherence", {"n": 1}, "fresh view fresh view", 1 / 2),
        ("coherence", {"ends": ".!"}, "we had no view", 0.0),
        ("coherence", {"ends": ".!"}, "we had no view! ", 1.0),
        ("coherence", {}, " ", 0.0),
        ("prompt_words", {"ignore": ["Review", "of", "the", "we", "had", "no"]}, "a view of a CAFE.", 2 / 3),
        ("prompt_words", {"ignore": ["review", "of", "the", "cafe", "we", "had", "no", "fresh", "view"]}, "", 1.0),
        ("toy_truth", {}, " the staff was lovely . the price was awful .", 0.0),
        ("toy_validity", {}, " the staff was lovely . staff the was .", 0.5),
    ],
)
def test_a_rule_scores(name, options, completion, score):
    assert bind_rule(name, options)(["review of the cafe : we had no fresh view ."], [completion]) == [
        pytest.approx(score)
    ]


@pytest.mark.parametrize(
    ("completion", "answer", "score"),
    [
        ("so 3 + 4 = 7", "7", 1),
        ("#### 1,234", "1234", 1),
        ("5-3", "3", 1),
        ("it is -2", "2", 0),
        ("none", "1", 0),
        ("7.0", 7, 1),
        ("It costs $18.", "6 x 3 = <<6*3=18>>18 dollars\n#### 18", 1),
        ("9 eggs at $2 each\n#### $18.00 a day", "#### 18", 1),
        ("She makes $1,234,567", "#### 1,234,567", 1),
        ("from 12,50", "1250", 0),
        ("\\boxed{-3}", "#### -3", 1),
        ("18 of 100 %", "#### 18", 0),
        ("#### eighteen", "18", 0),
    ],
)
def test_the_last_number_is_the_answer(completion, answer, score):
    assert bind_rule("exact_answer", {})(["?"], [completion], answer=[answer]) == [score]
    strict = bind_rule("exact_answer", {"strict": True})(["?"], [completion], answer=[answer])
    assert strict == [score * ("####" in completion)]


@pytest.mark.parametrize(
    ("completion", "answer", "recall"),
    [
        ("It was the Norman conquest of England", {"text": ["the Norman conquest"], "answer_start": [0]}, 1.0),
        ("Norman", ["Norman conquest", "conquest of England"], 1 / 2),
        ("cat", "cat cat dog", 1 / 3),
        ("nothing", "the", 1.0),
    ],
)
def test_completeness_is_how_much_of_the_answer_is_there(completion, answer, recall):
    assert bind_rule("token_recall", {})(["?"], [completion], answer=[answer]) == [pytest.approx(recall)]


def test_the_samples_of_a_prompt_share_the_worth_of_their_n_grams():
    """Against a loop over n-grams; and weighted by their number the mean is distinct-n, whatever the order of the rows."""
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(list("abcd"), size)) for size in (7, 1, 5, 9, 6, 5)]
    prompts = ["p", "p", "p", TALK, TALK, "alone"]
    scores = bind_rule("diversity", {"n": 2})(prompts, texts)

    def grams(text):
        words = text.split()
        return list(itertools.pairwise(words))

    for i, text in enumerate(texts):
        group = [t for p, t in zip(prompts, texts, strict=True) if p == prompts[i]]
        worth = sum(1 / sum(g in grams(t) for t in group) for g in set(grams(text)))
        assert scores[i] == pytest.approx(worth / max(1, len(grams(text))))
    for key in ("p", TALK):
        rows = [i for i, p in enumerate(prompts) if p == key]
        counts = [len(grams(texts[i])) for i in rows]
        mean = sum(scores[i] * c for i, c in zip(rows, counts, strict=True)) / sum(counts)
        assert mean == pytest.approx(quality.distinct([texts[i] for i in rows], 2))


def test_a_conversation_is_read_as_its_messages():
    assert bind_rule("coherence", {})([TALK], ["the other view"]) == [pytest.approx(2 / 3)]


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("beauty", {}, "no rule 'beauty'; there are word_share"),
        ("length", {}, "needs target"),
        ("length", {"target": 4, "size": 1}, "does not take size"),
        ("length", {"target": 0}, "correct its options"),
        ("word_share", {"words": "warm"}, "not a list of words"),
        ("regex_match", {"pattern": "("}, "correct its options"),
    ],
)
def test_options_that_cannot_be(name, options, says):
    with pytest.raises(RewardError, match=says):
        bind_rule(name, options)


def test_a_worker_says_what_a_rule_misses(tmp_path):
    with pytest.raises(RewardError, match="which has prompt, wanted"):
        score_completions([RuleReward(name="right", rule="exact_answer")], tmp_path)
