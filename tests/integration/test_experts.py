"""Mixtures of experts on two ranks: an update, a sync to both engines' names, an export and a resume."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlhf_ray.batch import from_sequences
from rlhf_ray.config import LearnerConfig, ModelConfig
from rlhf_ray.learner.objectives import LossTerm
from rlhf_ray.learner.worker import LearnerWorker, Role
from rlhf_ray.models.checkpoint_format import checkpoint_shapes
from rlhf_ray.models.load import build_skeleton
from rlhf_ray.rollout.engine import Sampling
from rlhf_ray.rollout.transformers_engine import TransformersEngine
from rlhf_ray.tasks.language_model import LanguageModelObjective
from rlhf_ray.weights.messages import Bucket, ProbeAnswer
from tests.collectives import first_difference, run_ranks
from tests.experts import EXPERTS, UP_PROJECTION, save_random_model

pytestmark = pytest.mark.integration
WORLD = 2
PROBE = np.arange(3, 13, dtype=np.int32)
CPU = torch.device("cpu")


def rows():
    """Four ragged rows, two for each rank, which go to other experts."""
    draw = np.random.default_rng(0)
    tokens = [draw.integers(0, 50, n).astype(np.int32) for n in (5, 9, 13, 7)]
    return from_sequences(
        tokens, response_mask=[np.ones(len(t)) for t in tokens], prompt_length=[0] * 4, group=np.arange(4)
    )


def started(path, stage, rank, port):
    """A rank with an actor of ``path`` at a ZeRO stage; several workers of a process share its group of ranks."""
    config = LearnerConfig(zero_stage=stage, optimizer="sgd", micro_batch_tokens=16, num_workers=WORLD)
    actor = Role(name="actor", kind="policy", model=ModelConfig(path=path, attention="auto"), lr=0.1)
    worker = LearnerWorker(config=config, roles=[actor], device="cpu", num_threads=1, deadline_s=60.0)
    info = worker.start(rank, WORLD, "127.0.0.1", port)["roles"]["actor"]
    assert info["packed"], info
    return worker


def updated(worker, batch):
    """The loss before an optimizer step on the whole batch."""
    term = LossTerm(objective=LanguageModelObjective(), coef=1.0, batch=batch, rows=[np.arange(len(batch))])
    return worker.update("actor", [term])


def copied(worker):
    return {name: tensor.clone() for name, tensor in (worker.weights() or {}).items()}


def sent(worker, weight_names):
    """What a sync sends, and the learner's log-probs of its probe."""
    messages = list(worker.sync_weights(1, (PROBE, PROBE[:5]), 1.0, 0.1, weight_names))
    answer = messages[-1]
    assert isinstance(answer, ProbeAnswer)
    named = {name: t.clone() for m in messages if isinstance(m, Bucket) for name, t in m.unpack()}
    return named, answer.log_probs


def train_and_leave(rank, port, recorder, paths, stages, directory):
    """For each model and stage: an update, both syncs, an export, a save, an update, a load, and the update again."""
    for architecture, path in paths.items():
        for stage in stages:
            folder = directory / f"{architecture}-{stage}"
            folder.mkdir(exist_ok=True)
            worker = started(path, stage, rank, port)
            results = {"before": copied(worker)}
            with recorder:
                recorder.stage = f"{architecture}, ZeRO-{stage}"
                updated(worker, rows())
                results["weights"] = copied(worker)
                for weight_names in ("transformers", "checkpoint"):
                    results[weight_names], results["probe"] = sent(worker, weight_names)
                worker.export(str(folder / "exported"))
                worker.save(str(folder))
                updated(worker, rows())
                results["after"] = copied(worker)
                resumed = started(path, stage, rank, port)
                resumed.load(str(folder))
                results["loaded"] = copied(resumed)
                updated(resumed, rows())
                results["again"] = copied(resumed)
            if rank == 0:
                torch.save(results, folder / "results.pt")


@pytest.fixture(scope="module", params=[(1, 3), pytest.param((0, 2), marks=pytest.mark.learning)], ids=str)
def results(request, tmp_path_factory):
    """What rank 0 had, by architecture and stage, and the folder of each."""
    directory = tmp_path_factory.mktemp("experts")
    paths = {name: save_random_model(name, directory / name) for name in EXPERTS}
    records, errors = run_ranks(train_and_leave, WORLD, directory, paths, request.param, directory, timeout_s=120.0)
    assert errors == [None] * WORLD
    assert first_difference(*records) is None
    folders = {(name, stage): directory / f"{name}-{stage}" for name in EXPERTS for stage in request.param}
    return {key: (torch.load(folder / "results.pt", weights_only=False), folder) for key, folder in folders.items()}


def assert_equal(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name]), name


def test_experts_and_routers_learn_alike_at_each_stage(results):
    for (architecture, stage), (result, folder) in results.items():
        initial = AutoModelForCausalLM.from_pretrained(folder.parent / architecture)
        assert_equal(result["before"], {name: p.detach() for name, p in initial.named_parameters()})
        learned = {name for name, t in result["weights"].items() if not torch.equal(t, result["before"][name])}
        assert {
            f"model.layers.1.mlp.{n}" for n in ("experts.gate_up_proj", "experts.down_proj", "gate.weight")
        } <= learned
        other = results[architecture, min(s for _, s in results)][0]
        for name, tensor in result["weights"].items():
            torch.testing.assert_close(tensor, other["weights"][name], rtol=1e-4, atol=1e-6, msg=f"{stage}: {name}")


def test_the_embedded_engine_takes_a_sync_and_computes_as_the_learner(results):
    for (architecture, _), (result, folder) in results.items():
        model = AutoModelForCausalLM.from_pretrained(folder.parent / architecture).eval()
        engine = TransformersEngine(model, Sampling(4, 1.0, ()), 4, CPU)
        assert engine.decoding.remark == ""
        assert np.abs(engine.log_probs(PROBE) - result["probe"]).max() > 1e-3
        engine.load_weights(result["transformers"].items())
        np.testing.assert_allclose(engine.log_probs(PROBE), result["probe"], atol=1e-5)


def test_vllm_is_sent_what_save_pretrained_writes(results):
    for (architecture, _), (result, folder) in results.items():
        saved = load_file(folder / "exported" / "model.safetensors")
        assert UP_PROJECTION[architecture] in saved
        assert_equal(result["checkpoint"], saved)
        with torch.device("meta"):
            skeleton = build_skeleton("policy", str(folder.parent / architecture), dtype=torch.float32)
        assert checkpoint_shapes(skeleton) == {name: tuple(tensor.shape) for name, tensor in saved.items()}


def test_an_export_has_the_learners_weights(results):
    for result, folder in results.values():
        exported = AutoModelForCausalLM.from_pretrained(folder / "exported")
        assert_equal({name: p.detach() for name, p in exported.named_parameters()}, result["weights"])


def test_a_resumed_update_is_the_same(results):
    for result, _ in results.values():
        assert_equal(result["loaded"], result["weights"])
        assert_equal(result["again"], result["after"])
