"""The embedded engine: samples that depend on their own seed alone, their ends, its counters and its weights."""

import numpy as np
import pytest
import torch

from rlhf_ray.rollout.engine import Request
from tests.unit.rollout.tiny import EOS, causal_model, completions, engine_of, nine_requests


def test_a_response_ends_at_an_end_token_or_at_the_limit():
    for completion in completions(engine_of(causal_model()), nine_requests()).values():
        ends = [t in EOS for t in completion.tokens]
        assert not any(ends[:-1])
        assert completion.truncated == (not ends[-1])
        assert completion.truncated == (len(completion.tokens) == 12 and not ends[-1])


def test_some_responses_end_early_and_some_do_not():
    truncated = {c.truncated for c in completions(engine_of(causal_model()), nine_requests()).values()}
    assert truncated == {True, False}


@pytest.mark.parametrize("max_rows", [1, 2, 16])
def test_what_shares_the_batch_changes_nothing(max_rows):
    expected = completions(engine_of(causal_model()), nine_requests())
    others = completions(engine_of(causal_model(), max_rows=max_rows), nine_requests())
    assert set(others) == set(expected)
    for id, completion in expected.items():
        assert others[id].tokens.tolist() == completion.tokens.tolist()
        np.testing.assert_allclose(others[id].log_probs, completion.log_probs, atol=1e-4)


def test_another_seed_gives_another_sample():
    requests = [Request(id=seed, prompt=np.array([5, 6]), seed=seed, group=0) for seed in (1, 2)]
    by_seed = completions(engine_of(causal_model()), requests)
    assert by_seed[1].tokens.tolist() != by_seed[2].tokens.tolist()


def test_samples_follow_the_models_distribution():
    prompt, count = np.array([5, 9, 4]), 4000
    requests = [Request(id=i, prompt=prompt, seed=i, group=0, max_new_tokens=1) for i in range(count)]
    tokens = [c.tokens[0] for c in completions(engine_of(causal_model(), max_rows=512), requests).values()]
    with torch.no_grad():
        logits = causal_model()(input_ids=torch.tensor(prompt)[None]).logits[0, -1].float()
    probability = torch.softmax(logits / 0.8, -1).numpy()
    share = np.bincount(tokens, minlength=50) / count
    assert np.abs(share - probability).max() < 5 * np.sqrt(probability.max() / count)


def test_a_limit_of_a_request_holds_for_it_alone():
    short, long = (Request(id=n, prompt=np.array([5]), seed=3, group=0, max_new_tokens=n) for n in (2, 9))
    by_limit = completions(engine_of(causal_model()), [short, long])
    assert len(by_limit[2].tokens) == 2
    assert by_limit[9].tokens[:2].tolist() == by_limit[2].tokens.tolist()


def test_greedy_is_what_transformers_generates():
    request = Request(id=0, prompt=np.array([5, 9, 4]), seed=0, group=0, greedy=True)
    tokens = completions(engine_of(causal_model()), [request])[0].tokens
    sequence = causal_model().generate(
        torch.tensor([[5, 9, 4]]), do_sample=False, max_new_tokens=12, eos_token_id=list(EOS), pad_token_id=0
    )
    assert tokens.tolist() == sequence[0, 3:].tolist()


def test_counters_count_tokens_and_idle_rows():
    engine = engine_of(causal_model())
    by_id = completions(engine, nine_requests()[:3])
    counters = engine.take_counters()
    assert counters["tokens"] == sum(len(c.tokens) for c in by_id.values())
    assert 0.25 <= counters["idle_share"] < 1
    assert engine.take_counters()["tokens"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n: n.pop("model.norm.weight"), "no tensor for model.norm.weight"),
        (lambda n: n.update(x=torch.zeros(1)), "no parameter 'x'"),
        (lambda n: n.update({"model.norm.weight": torch.zeros(3)}), r"shape \(3,\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, message):
    named = dict(causal_model(seed=1).state_dict())
    change(named)
    with pytest.raises(ValueError, match=message):
        engine_of(causal_model()).load_weights(named.items())
