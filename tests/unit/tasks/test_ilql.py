"""Recorded answers with rewards: where a reward lies, and what cannot be learnt."""

import pytest

from rlhf_ray.data.examples import DataError
from rlhf_ray.tasks.ilql import prepare
from rlhf_ray.toy import world as toy
from tests.unit.tasks.helpers import rows


def test_a_reward_lies_at_the_end_token_and_steps_at_their_last():
    one = {"prompt": "the staff", "completion": " was great .", "reward": 2}
    steps = {"prompt": "the view", "completions": [" was", " not great"], "rewards": [1, -0.5]}
    made = prepare(rows(one, steps, {**one, "completion": " was great ." * 3}), toy.tokenizer(), 8)
    assert made.num_dropped == 1
    assert [s.tolist() for s in made.batch.sequences("response_mask")] == [[0, 0, 1, 1, 1, 1]] * 2
    assert [s.tolist() for s in made.batch.sequences("step_rewards")] == [[0, 0, 0, 0, 0, 2], [0, 0, 1, 0, 0, -0.5]]
    assert toy.tokenizer().decode(made.batch.sequences()[1]) == "the view was not great <eos>"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"reward": None}, "x.jsonl:1: no column 'reward'"),
        ({"reward": "good"}, "x.jsonl:1: reward is 'good', expected a number"),
        ({"reward": True}, "reward is True, expected a number"),
        ({"reward": float("nan")}, "reward is nan, expected a number"),
        ({"completions": [" was"], "rewards": [1, 2]}, "1 completions and 2 rewards"),
        ({"completions": [" was", " great"], "rewards": [1, "x"]}, r"rewards\[1\] is 'x', expected a number"),
        ({"completions": ["", " great"], "rewards": [1, 2]}, r"completions\[0\] is '', which has no token"),
        ({"completions": [" great"]}, "no column 'rewards'"),
    ],
)
def test_rewards_that_cannot_be_learned(change, says):
    row = {k: v for k, v in ({"prompt": "the", "completion": " end", "reward": 1} | change).items() if v is not None}
    with pytest.raises(DataError, match=says):
        prepare(rows(row), toy.tokenizer(), 16)
