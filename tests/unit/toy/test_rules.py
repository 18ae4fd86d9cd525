"""The toy rules are named in jobs like any other rule, and measure what the dataset's checks say."""

import pytest

from rlhf_ray.rewards.reward import RewardError
from rlhf_ray.rewards.rules import RULES, bind_rule
from rlhf_ray.toy.rules import TOY_RULES

REVIEW = "review of the hotel : the view was great ."


@pytest.mark.parametrize(
    ("name", "prompt", "completion", "score"),
    [
        ("toy_truth", REVIEW, " the staff was awful . nonsense .", -1.0),
        ("toy_sentiment", REVIEW, " the staff was awful . nonsense .", -1.0),
        ("toy_validity", REVIEW, " the staff was awful . nonsense .", 0.5),
        ("toy_consistency", REVIEW, " the staff was awful . verdict mixed", 1.0),
        ("toy_arithmetic", "1 2 + 7 =", " 1 9", 1.0),
    ],
)
def test_a_toy_rule_is_found_by_its_name(name, prompt, completion, score):
    assert bind_rule(name, {})([prompt], [completion]) == [score]


def test_the_tables_share_no_name_and_an_unknown_rule_lists_both():
    assert not set(RULES) & set(TOY_RULES)
    with pytest.raises(RewardError, match=r"no rule 'toy_tru'; there are word_share.*toy_truth"):
        bind_rule("toy_tru", {})
