"""Reward models: what they read, at which token, and process rewards."""

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import processors

from rlhf_ray.batch import from_sequences
from rlhf_ray.config import ModelConfig, ModelReward, RewardsConfig
from rlhf_ray.config.rewards import RuleReward
from rlhf_ray.data.tokenizer import load_tokenizer
from rlhf_ray.rewards.normalise import total_reward
from rlhf_ray.rewards.reward import DROPPED, RewardError
from rlhf_ray.toy import world as toy
from tests.unit.rewards.helpers import judge_logit, make_judge, make_worker, score_completions, score_conversation


def test_a_process_reward_is_the_score_at_each_steps_end(twin, tmp_path):
    """Steps end at 'was' here, and an answer's last token ends one; the prompt's tokens never do."""
    tokenizer = toy.tokenizer()
    term = ModelReward(name="steps", path=twin, steps="was", weight=0.5)
    plain = RuleReward(name="words", rule="word_share", options={"words": ["ugly"]})
    worker = make_worker([term, plain], tmp_path)
    sequences = [tokenizer(t)["input_ids"] for t in ("the view was great . the staff was", "the view was ugly")]
    batch = from_sequences(
        sequences,
        prompt_length=[3, 3],
        response_mask=[[0, 0, 0, *[1] * (len(s) - 3)] for s in sequences],
        group=[0, 1],
        example_id=[0, 1],
    )
    scored = batch.replace(**worker.score(batch, pa.table({"example_id": [0, 1], "prompt": ["the view was"] * 2})))
    ends = {7: sequences[0][:8], 11: sequences[1][:4]}
    for place, value in enumerate(scored.step_rewards):
        expected = 0.5 * judge_logit(twin, ends[place]) if place in ends else 0.0
        assert value == pytest.approx(expected, abs=1e-5), place
    assert scored.reward_parts[:, 0].tolist() == pytest.approx([2 * v for v in scored.step_rewards[[7, 11]]])
    total = total_reward(scored.reward_parts, RewardsConfig(terms=[term, plain]), {})
    assert total.tolist() == scored.reward_parts[:, 1].tolist()  # the steps' rewards come at their steps


def test_steps_need_the_policys_tokenizer(judge, tmp_path):
    worker = make_worker([ModelReward(name="steps", path=judge, steps=".")], tmp_path)
    batch = from_sequences([[5, 6]], prompt_length=[1], response_mask=[[0, 1]], group=[0], example_id=[0])
    with pytest.raises(RewardError, match="has another tokenizer"):
        worker.score(batch, pa.table({"example_id": [0], "prompt": ["x"]}))


def test_a_foreign_reward_model_reads_a_conversation_with_one_bos(tmp_path):
    tokenizer = toy.tokenizer()
    tokenizer.add_tokens(["[another]"])
    bos = [("<bos>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", None, bos)
    tokenizer.chat_template = "<bos>{% for m in messages %} {{ m.content }}{% endfor %}"
    path = make_judge(tmp_path / "judge", tokenizer)
    ids = tokenizer("<bos> the view was warm . <eos>", add_special_tokens=False)["input_ids"]
    assert score_conversation([ModelReward(name="m", path=path)], tmp_path) == [
        pytest.approx(judge_logit(path, ids), abs=1e-5)
    ]


def test_a_context_without_room_for_the_end_token_is_refused_before_the_run(tmp_path, twin):
    worker = make_worker([ModelReward(name="m", path=twin)], tmp_path)
    worker.check(127)
    with pytest.raises(RewardError, match=r"reward 'm': a truncated sample .* context of 128; lower .* by 1$"):
        worker.check(128)


@pytest.mark.parametrize("on_error", ["fail", "drop"])
def test_a_sequence_beyond_the_context_is_the_terms_on_error(tmp_path, twin, on_error):
    worker = make_worker([ModelReward(name="m", path=twin, on_error=on_error)], tmp_path)
    batch = from_sequences([np.full(n, 7) for n in (128, 127)], prompt_length=[4, 4], example_id=np.array([0, 1]))
    rows = pa.table({"example_id": [0, 1], "prompt": ["the", "the"]})
    if on_error == "fail":
        with pytest.raises(RewardError, match="example 0 has 129 tokens, more than"):
            worker.score(batch, rows)
    else:
        parts = worker.score(batch, rows)["reward_parts"][:, 0]
        assert parts[0] == DROPPED
        assert parts[1] == pytest.approx(judge_logit(twin, [7] * 127 + [worker.tokenizer.eos_token_id]), abs=1e-5)


def test_without_a_pad_token_the_score_is_read_at_the_end_token(tmp_path, judge):
    parts, prompts, completions = score_completions([ModelReward(name="m", path=judge)], tmp_path)
    assert load_tokenizer(ModelConfig(path=judge), judge).pad_token_id is None
    tokenizer = toy.tokenizer()
    for i, text in enumerate(f"{p} {c}" for p, c in zip(prompts, completions, strict=True)):
        ids = tokenizer(text)["input_ids"]
        assert parts[i, 0] == pytest.approx(judge_logit(judge, [*ids, tokenizer.eos_token_id]), abs=1e-5)
        assert parts[i, 0] != pytest.approx(judge_logit(judge, ids), abs=1e-5)
