"""The reward worker: every kind of term in its order."""

import numpy as np
import pytest

from rlhf_ray.config import ModelReward, RewardsConfig
from rlhf_ray.config.rewards import FunctionReward, RuleReward
from rlhf_ray.rewards.normalise import total_reward
from rlhf_ray.toy import world as toy
from tests.unit.rewards.helpers import judge_logit, score_completions


def test_a_worker_scores_every_kind_of_term_in_its_order(tmp_path, judge):
    (tmp_path / "f.py").write_text(
        "def f(prompts, completions, wanted, **_):\n    return [float(w in c) for c, w in zip(completions, wanted)]"
    )
    terms = [
        RuleReward(name="words", rule="word_share", options={"words": ["ugly", "fresh"]}),
        FunctionReward(name="wanted", path=f"{tmp_path}/f.py:f"),
        ModelReward(name="taste", path=judge),
    ]
    parts, prompts, completions = score_completions(terms, tmp_path)
    assert parts[:, 0].tolist() == [pytest.approx(1 / 4), pytest.approx(1 / 8)]
    assert parts[:, 1].tolist() == [1.0, 0.0]
    tokenizer = toy.tokenizer()
    for i, text in enumerate(f"{p} {c}" for p, c in zip(prompts, completions, strict=True)):
        assert parts[i, 2] == pytest.approx(
            judge_logit(judge, [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]), abs=1e-5
        )


def test_a_term_that_returns_none_is_nan_and_counts_for_nothing(tmp_path):
    (tmp_path / "f.py").write_text(
        "def ugly_only(prompts, completions, **columns):\n"
        "    return [1.0 if 'ugly' in c else None for c in completions]\n"
    )
    terms = [
        FunctionReward(name="ugly", path=f"{tmp_path}/f.py:ugly_only"),
        RuleReward(name="words", rule="contains", options={"text": "fresh"}),
    ]
    parts = score_completions(terms, tmp_path)[0]
    np.testing.assert_array_equal(parts, [[1.0, 0.0], [np.nan, 1.0]])
    assert total_reward(parts, RewardsConfig(terms=terms), {}).tolist() == [1.0, 1.0]
