"""Real DeepSpeed on gloo: loss, gradient and result depend neither on the stage nor on ranks, micro-batches or row order."""

import numpy as np
import pytest
import ray
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_ray.batch import from_sequences
from rlhf_ray.config import LearnerConfig, LoraConfig, ModelConfig
from rlhf_ray.learner.objectives import LanguageModelObjective, PairwiseObjective
from rlhf_ray.learner.worker import LearnerWorker, Role
from tests.helpers import TINY

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    values = {k: v for k, v in TINY.items() if k != "model_type"}
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=50, **values)).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module", autouse=True)
def session():
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def batch(order=None):
    draw = np.random.default_rng(0)
    tokens = [draw.integers(0, 50, n).astype(np.int32) for n in (5, 9, 13, 7, 20, 3, 11, 6)]
    whole = from_sequences(
        tokens,
        response_mask=[np.r_[np.zeros(2), np.ones(len(t) - 2)] for t in tokens],
        group=np.repeat(np.arange(4), 2),
        example_id=np.arange(8),
        labels=np.tile([[1.0, 0.5], [0.0, 0.5]], (4, 1)),
    )
    return whole if order is None else whole.take(order)


def learn(model, world, stage, budget, rows, lora=None, directory=None):
    """Two SGD steps of an actor and a scalar model; returns the actor's weights, metrics and probe."""
    config = LearnerConfig(
        zero_stage=stage, optimizer="sgd", micro_batch_tokens=budget, num_workers=world, max_grad_norm=0.5
    )
    roles = [
        Role("actor", "policy", ModelConfig(path=model, lora=lora), 0.1),
        Role("critic", "scalar", ModelConfig(path=model), 0.1),
        Role("reference", "policy", ModelConfig(path=model), None),
    ]
    actors = [
        ray.remote(LearnerWorker).options(num_cpus=0.5).remote(config, roles, "cpu", 1, 60.0) for _ in range(world)
    ]
    address, port = ray.get(actors[0].address.remote())
    ray.get([a.start.remote(r, world, address, port) for r, a in enumerate(actors)])
    every = [[np.arange(len(rows))]]
    annotated = ray.get([a.annotate.remote(rows, 1.0, ["old_log_probs", "ref_log_probs", "values"]) for a in actors])
    found = [
        ray.get([a.update.remote("actor", [(LanguageModelObjective(), 1.0)], [every[0]], rows) for a in actors])
        for _ in range(2)
    ]
    pairs = ray.get([a.update.remote("critic", [(PairwiseObjective(), 1.0)], [every[0]], rows) for a in actors])
    if directory is not None:
        ray.get([a.save.remote(str(directory)) for a in actors])
        ray.get([a.load.remote(str(directory)) for a in actors])
    weights = ray.get([a.weights.remote() for a in actors])[0]
    probe = ray.get([a.probe.remote(np.arange(10, dtype=np.int32), 1.0) for a in actors])[0]
    for actor in actors:
        ray.kill(actor)
    norms = [part[0]["actor/grad_norm"][0] for part in found] + [pairs[0]["critic/grad_norm"][0]]
    loss = sum(p["loss/cross_entropy"][0] for p in found[1]) / sum(p["loss/cross_entropy"][1] for p in found[1])
    return weights, np.array([*norms, loss]), probe, annotated


@pytest.fixture(scope="module")
def whole(model):
    return learn(model, 1, 0, 1000, batch())


@pytest.mark.parametrize(("world", "stage", "budget"), [(2, 0, 25), (2, 1, 25), (2, 2, 25), (2, 3, 25)])
def test_same_as_one_rank_and_one_micro_batch(model, whole, tmp_path, world, stage, budget):
    order = np.random.default_rng(1).permutation(8)
    weights, numbers, probe, parts = learn(model, world, stage, budget, batch(order), directory=tmp_path)
    assert sorted(np.concatenate([p["rows"] for p in parts])) == list(range(8))
    for part in parts:
        np.testing.assert_array_equal(part["old_log_probs"], part["ref_log_probs"])
    np.testing.assert_allclose(numbers, whole[1], rtol=2e-5)
    np.testing.assert_allclose(probe, whole[2], atol=2e-5)
    assert weights.keys() == whole[0].keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, whole[0][name], rtol=1e-4, atol=1e-5)


def test_adapter_learns_and_its_reference_does_not(model):
    weights, numbers, _, _ = learn(model, 1, 1, 1000, batch(), lora=LoraConfig(rank=2, alpha=4.0))
    plain = AutoModelForCausalLM.from_pretrained(model).state_dict()
    changed = {n for n, t in weights.items() if not torch.equal(t, plain[n])}
    assert changed
    assert all("proj" in n for n in changed)
    assert np.isfinite(numbers).all()
