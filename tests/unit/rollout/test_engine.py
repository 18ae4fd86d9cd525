"""The embedded engine: log-probs of what was sampled, whatever shares the batch."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_ray.rollout.engine import Request, Sampling
from rlhf_ray.rollout.kv_cache import CachedDecoder, RecomputingDecoder
from rlhf_ray.rollout.transformers_engine import TransformersEngine

WIDE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "vocab_size": 50, "pad_token_id": 0, "eos_token_id": 2, "initializer_range": 0.5,
}  # fmt: skip
EOS = (2, 7)


def made(kind="llama", seed=0, **more):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**WIDE, **more})).eval()


def engine(model=None, max_rows=4, max_new_tokens=12, temperature=0.8):
    sampling = Sampling(max_new_tokens, temperature, EOS)
    return TransformersEngine(model or made(), sampling, max_rows, torch.device("cpu"))


def requests(count=9, **more):
    """Three prompts of different length, their samples side by side."""
    draw = np.random.default_rng(0)
    prompts = [draw.integers(3, 50, n) for n in (3, 8, 5)]
    return [Request(i, prompts[i // 3], seed=100 + i, group=i // 3, **more) for i in range(count)]


def run(of, some):
    of.add(some)
    found = {}
    while of.busy:
        found |= {c.id: c for c in of.step()}
    return found


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt_neox", "qwen2"])
def test_log_probs_are_those_of_a_fresh_forward_pass(kind):
    more = {"sliding_window": 4} if kind == "mistral" else {}
    model = made(kind, **more)
    plain = made(kind, **more)
    used = engine(model)
    assert isinstance(used.decoder, CachedDecoder)
    for request, found in zip(requests(), run(used, requests()).values(), strict=False):
        request = requests()[found.id]
        ids = torch.tensor(np.concatenate([request.prompt, found.tokens]))[None]
        with torch.no_grad():
            whole = (plain(input_ids=ids).logits[0].float() / 0.8).log_softmax(-1)
        first = len(request.prompt)
        wanted = [float(whole[first - 1 + i, t]) for i, t in enumerate(found.tokens)]
        np.testing.assert_allclose(found.log_probs, wanted, atol=1e-4)


def test_a_response_ends_at_an_end_token_or_at_the_limit():
    for found in run(engine(), requests()).values():
        ends = [t in EOS for t in found.tokens]
        assert not any(ends[:-1])
        assert found.truncated == (not ends[-1])
        assert found.truncated == (len(found.tokens) == 12 and not ends[-1])


def test_some_responses_end_early_and_some_do_not():
    truncated = {c.truncated for c in run(engine(), requests()).values()}
    assert truncated == {True, False}


@pytest.mark.parametrize("max_rows", [1, 2, 16])
def test_what_shares_the_batch_changes_nothing(max_rows):
    wanted, found = run(engine(), requests()), run(engine(max_rows=max_rows), requests())
    assert set(found) == set(wanted)
    for i, completion in wanted.items():
        assert found[i].tokens.tolist() == completion.tokens.tolist()
        np.testing.assert_allclose(found[i].log_probs, completion.log_probs, atol=1e-4)


def test_another_seed_gives_another_sample():
    one, two = (run(engine(), [Request(0, np.array([5, 6]), seed=s, group=0)])[0] for s in (1, 2))
    assert one.tokens.tolist() != two.tokens.tolist()


def test_samples_follow_the_models_distribution():
    model, prompt = made(), np.array([5, 9, 4])
    count = 4000
    some = [Request(i, prompt, seed=i, group=0, max_new_tokens=1) for i in range(count)]
    drawn = [c.tokens[0] for c in run(engine(model, max_rows=512), some).values()]
    with torch.no_grad():
        p = torch.softmax(made()(input_ids=torch.tensor(prompt)[None]).logits[0, -1].float() / 0.8, -1).numpy()
    share = np.bincount(drawn, minlength=50) / count
    assert np.abs(share - p).max() < 5 * np.sqrt(p.max() / count)


def test_greedy_is_what_transformers_generates():
    request = Request(0, np.array([5, 9, 4]), seed=0, group=0, greedy=True)
    found = run(engine(), [request])[0].tokens
    whole = made().generate(
        torch.tensor([[5, 9, 4]]), do_sample=False, max_new_tokens=12, eos_token_id=list(EOS), pad_token_id=0
    )
    assert found.tolist() == whole[0, 3:].tolist()


def test_a_model_that_a_cache_does_not_fit_is_recomputed():
    model = made("gemma2", head_dim=16, final_logit_softcapping=5.0, attn_logit_softcapping=5.0, eos_token_id=2)
    used = engine(model)
    assert isinstance(used.decoder, RecomputingDecoder)
    found = run(used, requests(3))[1]
    ids = np.concatenate([requests()[1].prompt, found.tokens])
    np.testing.assert_allclose(used.log_probs(ids)[-len(found.tokens) :], found.log_probs, atol=1e-4)


def test_statistics_count_tokens_and_idle_rows():
    used = engine()
    found = run(used, requests(3))
    counted = used.take_counters()
    assert counted["tokens"] == sum(len(c.tokens) for c in found.values())
    assert 0.25 <= counted["idle_share"] < 1
    assert used.take_counters()["tokens"] == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda n: n.pop("model.norm.weight"), "no tensor for model.norm.weight"),
        (lambda n: n.update(x=torch.zeros(1)), "no parameter 'x'"),
        (lambda n: n.update({"model.norm.weight": torch.zeros(3)}), r"shape \(3,\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, says):
    named = dict(made(seed=1).state_dict())
    change(named)
    with pytest.raises(ValueError, match=says):
        engine().load_weights(named.items())
