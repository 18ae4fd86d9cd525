"""Encoder-decoders: losses and translations against each pair alone; their engine; refusals."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from rlhf_ray.batch import from_sequences
from rlhf_ray.config import BadInput, ModelConfig
from rlhf_ray.models.load import create_model, read_config, wrap_model
from rlhf_ray.rollout.engine import Request, Sampling
from rlhf_ray.rollout.seq2seq_engine import Seq2SeqEngine
from rlhf_ray.tasks.seq2seq import Seq2SeqObjective
from rlhf_ray.toy import world as toy
from rlhf_ray.train import roles
from tests.helpers import T5, TINY

CPU = torch.device("cpu")
SIDES = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64, "init_std": 0.3,
}  # fmt: skip
KINDS = {
    "t5": {**T5, "initializer_factor": 3.0, "decoder_start_token_id": 0},
    "bart": {**SIDES, "decoder_start_token_id": 2, "forced_eos_token_id": None},  # a target begins with the end token
    "marian": {**SIDES, "decoder_start_token_id": 0, "forced_eos_token_id": None},
}


def model(kind):
    """transformers' model, and the same one wrapped."""
    values = {
        "vocab_size": 40,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **KINDS[kind],
        "model_type": kind,
    }
    both = []
    for _ in range(2):
        torch.manual_seed(1)
        both.append(AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(**values)).eval())
    if kind != "t5":  # Marian's is trained, and no parameter
        for m in both:
            m.final_logits_bias.copy_(torch.randn(1, 40, generator=torch.Generator().manual_seed(2)))
    return both[0], wrap_model("seq2seq", both[1], attention="auto")


def pairs(sources=(5, 2, 9, 1), targets=(3, 7, 1, 4)):
    """Ragged random pairs as a Batch."""
    draw = np.random.default_rng(0)
    sequences = [draw.integers(3, 40, s + t) for s, t in zip(sources, targets, strict=True)]
    masks = [np.r_[np.zeros(s), np.ones(t)] for s, t in zip(sources, targets, strict=True)]
    number = np.arange(len(sources))
    return from_sequences(sequences, response_mask=masks, prompt_length=sources, group=number, example_id=number)


def split(batch):
    return [(s[:n], s[n:]) for s, n in zip(batch.sequences(), batch.prompt_length, strict=True)]


def ids(row):
    return torch.tensor(np.asarray(row)).long()[None]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_pairs_is_that_of_each_alone(kind, smoothing):
    plain, wrapped = model(kind)
    batch, start = pairs(), plain.config.decoder_start_token_id
    naive = plainly = 0.0
    for source, target in split(batch):
        with torch.no_grad():
            decoder_ids = ids(np.r_[start, target[:-1]])
            log_p = plain(input_ids=ids(source), decoder_input_ids=decoder_ids).logits[0].log_softmax(-1)
        for i, t in enumerate(target):
            plainly -= float(log_p[i, t])
            naive -= (1 - smoothing) * float(log_p[i, t]) + smoothing * sum(map(float, log_p[i])) / 40
    objective = Seq2SeqObjective(label_smoothing=smoothing)
    loss, metrics = objective.loss(wrapped, batch, CPU)
    assert float(loss.detach()) == pytest.approx(naive, rel=1e-5)
    total, count = metrics["loss/cross_entropy"]
    assert float(total) == pytest.approx(plainly, rel=1e-5)  # what is measured is not smoothed
    assert objective.weight(batch) == 15 == float(count)


@pytest.mark.parametrize("kind", KINDS)
def test_translations_are_those_of_generate_one_by_one(kind):
    plain, wrapped = model(kind)
    batch = pairs()
    translations = Seq2SeqObjective(max_new_tokens=6).predict(wrapped, batch, CPU)
    plain.generation_config.num_beams = 3  # greedy all the same
    lengths = set()
    for (source, _), tokens in zip(split(batch), translations, strict=True):
        alone = plain.generate(input_ids=ids(source), max_new_tokens=6, do_sample=False, num_beams=1)[0, 1:].tolist()
        assert tokens.tolist() == (alone[: alone.index(2) + 1] if 2 in alone else alone)
        lengths.add(len(tokens))
    assert len(translations) == 4
    assert 0 not in lengths


def test_a_translation_ends_with_its_end_token():
    plain, wrapped = model("marian")
    plain.final_logits_bias[0, 2] = wrapped.core.final_logits_bias[0, 2] = 4.0
    translations = Seq2SeqObjective(max_new_tokens=30).predict(wrapped, pairs(), CPU)
    assert {len(t) for t in translations} != {30}
    assert all(t[-1] == 2 and 2 not in t[:-1] for t in translations if len(t) < 30)


def answers(engine, requests):
    engine.add(requests)
    completions = []
    while engine.busy:
        completions += engine.step()
    return {c.id: c for c in completions}


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_the_engine_answers_each_request_as_if_alone(kind):
    plain, _ = model(kind)
    sampling, start = Sampling(5, 0.7, (2,)), plain.config.decoder_start_token_id
    engine = Seq2SeqEngine(plain, sampling, 3, CPU)
    requests = [
        Request(id=i, prompt=source, seed=10 + i, group=i, greedy=i == 1)
        for i, (source, _) in enumerate(split(pairs()))
    ]
    completions = answers(engine, requests)
    assert sorted(completions) == [0, 1, 2, 3]
    for request in requests:
        got, alone = completions[request.id], answers(engine, [request])[request.id]
        assert got.tokens.tolist() == alone.tokens.tolist()
        with torch.no_grad():
            decoder_ids = ids(np.r_[start, got.tokens[:-1]])
            logits = plain(input_ids=ids(request.prompt), decoder_input_ids=decoder_ids).logits[0]
        log_p = (logits / 0.7).log_softmax(-1)
        expected = log_p[torch.arange(len(got.tokens)), torch.tensor(got.tokens).long()]
        np.testing.assert_allclose(got.log_probs, expected.numpy(), atol=1e-5)
        assert got.truncated == (got.tokens[-1] != 2)
        numbers = np.random.Generator(np.random.Philox(request.seed)).random(5, dtype=np.float32)
        drawn = [int((p.exp().cumsum(-1) <= u).sum()) for p, u in zip(log_p, numbers, strict=False)]
        assert got.tokens.tolist() == (logits.argmax(-1).tolist() if request.greedy else drawn)
    assert engine.take_counters()["tokens"] == sum(len(c.tokens) for c in completions.values()) * 2
    several = answers(engine, [Request(id=seed, prompt=requests[0].prompt, seed=seed, group=0) for seed in range(8)])
    assert len({tuple(c.tokens.tolist()) for c in several.values()}) > 4


def test_a_job_gets_the_kind_of_model_that_it_is_for(tmp_path):
    word = toy.tokenizer()
    both = create_model(ModelConfig(init=T5, tokenizer="toy"), str(tmp_path / "t5"), word, 0, "seq2seq")
    one = create_model(ModelConfig(init=TINY, tokenizer="toy"), str(tmp_path / "llama"), word, 0)
    prepared, _ = roles.prepare_model(ModelConfig(path=both), tmp_path, 0, "seq2seq")
    assert prepared.path == both
    assert read_config(both)["decoder_start_token_id"] == word.pad_token_id
    with pytest.raises(BadInput, match="is an encoder-decoder; job: seq2seq trains it"):
        roles.prepare_model(ModelConfig(path=both), tmp_path, 0)
    with pytest.raises(BadInput, match="is no encoder-decoder"):
        roles.prepare_model(ModelConfig(path=one), tmp_path, 0, "seq2seq")
    with pytest.raises(BadInput, match=r"model\.init: .*AutoModelForSeq2SeqLM"):
        roles.prepare_model(ModelConfig(init=TINY, tokenizer="toy"), tmp_path, 0, "seq2seq")
