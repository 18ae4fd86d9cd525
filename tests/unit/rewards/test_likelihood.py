"""Fluency: the mean log-prob of an answer under a language model."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf_ray.batch import from_sequences
from rlhf_ray.config.rewards import LikelihoodReward, ModelReward
from rlhf_ray.rewards.reward import RewardError
from rlhf_ray.toy import world as toy
from tests.helpers import TINY
from tests.unit.rewards.helpers import make_worker, score_completions


def make_language(path, tokenizer):
    """A random causal language model with this tokenizer at a path, and itself."""
    tokenizer.save_pretrained(path)
    settings = {k: v for k, v in TINY.items() if k != "model_type"} | {"initializer_range": 0.3}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **settings)).eval()
    model.save_pretrained(path)
    return model


def mean_log_prob(model, ids, first):
    """Naive: of the tokens from ``first`` on, one at a time."""
    with torch.no_grad():
        scores = [
            float(model(torch.tensor([ids[:i]])).logits[0, -1].log_softmax(-1)[ids[i]]) for i in range(first, len(ids))
        ]
    return sum(scores) / len(scores)


@pytest.mark.parametrize("same", [True, False])
def test_likelihood_is_the_mean_log_prob_of_what_was_sampled(tmp_path, same):
    """The first answer ended and the second was cut; with another tokenizer the same words have other ids."""
    policy, other = toy.tokenizer(), toy.tokenizer()
    if not same:
        words = policy.get_vocab()
        ids = {w: (i if i < 4 else len(words) + 3 - i) for w, i in words.items()}
        other = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel(ids, unk_token="<unk>")),
            eos_token="<eos>",
            unk_token="<unk>",
            clean_up_tokenization_spaces=False,
        )
        other.backend_tokenizer.pre_tokenizer = policy.backend_tokenizer.pre_tokenizer
    model = make_language(tmp_path / "language", other)
    prompts, answers = ["the view was", "we had a"], [" great . <eos>", " dull view . its"]
    sequences = [policy(p + a)["input_ids"] for p, a in zip(prompts, answers, strict=True)]
    batch = from_sequences(sequences, prompt_length=[3, 3], truncated=[False, True], example_id=[0, 1])
    worker = make_worker([LikelihoodReward(name="fluent", path=str(tmp_path / "language"))], tmp_path)
    worker.check(128)  # nothing is added where the tokens are the policy's: the whole context may be used
    scores = worker.score(batch, pa.table({"example_id": [0, 1], "prompt": prompts}))["reward_parts"][:, 0]
    expected = [mean_log_prob(model, other(p + a)["input_ids"], 3) for p, a in zip(prompts, answers, strict=True)]
    assert scores.tolist() == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == 2


def test_a_reward_model_has_no_likelihood(judge, tmp_path):
    with pytest.raises(RewardError, match=r"reward 'fluent': .* holds a reward model"):
        make_worker([LikelihoodReward(name="fluent", path=judge)], tmp_path).check()


@pytest.mark.parametrize("kind", [ModelReward, LikelihoodReward])
def test_bfloat16_scores_are_those_of_float32_but_for_rounding(kind, judge, tmp_path):
    """`auto` is float32 on a CPU, to the bit; bfloat16 differs, by much less than scores differ from each other."""
    path = judge
    if kind is LikelihoodReward:
        make_language(tmp_path / "language", toy.tokenizer())
        path = str(tmp_path / "language")
    names = {"full": "float32", "half": "bfloat16", "default": "auto"}
    parts, _, _ = score_completions(
        [kind(name=name, path=path, dtype=dtype) for name, dtype in names.items()], tmp_path
    )
    full, half, default = parts.T
    assert (default == full).all()
    assert (half != full).any()
    assert np.abs(half - full).max() < 0.02 * max(1.0, np.abs(full).max())
