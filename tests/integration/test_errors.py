"""A worker's error is the run's error: raised within seconds with its worker, whatever the others do."""

import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import ray
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_ray.actors import group
from rlhf_ray.actors.errors import GangTimeout, WorkerFailed, WorkerLost
from rlhf_ray.actors.group import WorkerGroup
from rlhf_ray.batch import from_sequences
from rlhf_ray.config import BadInput, LearnerConfig, ModelConfig
from rlhf_ray.learner.objectives import LossTerm
from rlhf_ray.learner.worker import LearnerWorker, Role
from rlhf_ray.tasks.language_model import LanguageModelObjective
from tests.helpers import ROOT, TINY

pytestmark = pytest.mark.integration


class Worker:
    """Does what its index is told to do."""

    def __init__(self, index):
        self.index = index

    def act(self, acts):
        """Runs act number ``index``: (what, argument)."""
        act, argument = acts[self.index]
        if act == "raise":
            raise argument
        if act == "sleep":
            time.sleep(argument)
        if act == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return self.index

    def tell(self, acts):
        """Yields twice around its act."""
        yield 1
        self.act(acts)
        yield 2


@pytest.fixture(autouse=True)
def short_grace(request, monkeypatch):
    """A grace of one second, but in the tests of the real one."""
    if "real_grace" not in request.fixturenames:
        monkeypatch.setattr(group, "GRACE_S", 1.0)


@pytest.fixture
def real_grace():
    """The grace that runs have."""


@pytest.fixture(scope="module", autouse=True)
def ray_session():
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def gang():
    """gang(count, ...) starts workers that end with the test."""
    groups = []

    def start(count, *, deadline_s=60.0, is_gang=True):
        groups.append(
            WorkerGroup(
                "learner",
                Worker,
                count,
                arguments=lambda index: {"index": index},
                options=lambda index: {"num_cpus": 0, "runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT)}}},
                deadline_s=deadline_s,
                max_restarts=1,
                gang=is_gang,
            )
        )
        assert groups[-1].broadcast("act", [(None, None)] * count) == list(range(count))
        return groups[-1]

    yield start
    for workers in groups:
        workers.kill()


def call(workers, method, acts):
    """Calls act or tell, and waits for all of it."""
    return list(workers.stream(method, acts)) if method == "tell" else workers.broadcast(method, acts)


@pytest.mark.parametrize(("method", "broken"), [("act", 1), ("tell", 0)])
def test_the_error_of_a_rank_is_raised_while_another_is_stuck_and_the_stuck_one_is_ended(
    gang, method, broken, real_grace
):
    workers, began = gang(2), time.monotonic()
    acts = [("sleep", 600.0), ("raise", ValueError("no labels\nmore"))]
    sentence = f"learner worker {broken} failed in {method}: ValueError: no labels"
    with pytest.raises(WorkerFailed, match=sentence) as caught:
        call(workers, method, acts if broken else acts[::-1])
    assert time.monotonic() - began < 15.0
    assert "raise argument" in str(caught.value.__cause__)  # the worker's traceback
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(workers.actors[1 - broken].act.remote([(None, None)] * 2), timeout=10.0)


def test_bad_input_of_a_rank_stays_bad_input(gang):
    with pytest.raises(BadInput, match=r"^data: no rows$"):
        gang(2).broadcast("act", [("raise", BadInput("data: no rows")), ("sleep", 600.0)])


def test_a_broken_connection_is_a_lost_worker_and_an_error_of_the_job_explains_it(gang):
    broken = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3822")
    with pytest.raises(WorkerLost, match="learner worker 0 lost the others"):
        gang(2).broadcast("act", [("raise", broken), ("sleep", 600.0)])
    workers = gang(3)
    with pytest.raises(WorkerFailed, match="worker 2 failed in act: ValueError: own"):
        workers.broadcast("act", [("raise", broken), ("sleep", 600.0), ("raise", ValueError("own"))])


@pytest.mark.parametrize("method", ["act", "tell"])
def test_a_death_of_any_rank_is_noticed_at_once(gang, method):
    workers, began = gang(3), time.monotonic()
    acts = [("sleep", 600.0), ("sleep", 600.0), ("die", None)]
    with pytest.raises(WorkerLost, match="learner worker 2 died"):
        call(workers, method, acts)
    assert time.monotonic() - began < 10.0


def test_workers_that_do_not_wait_for_each_other_go_on_after_an_error(gang):
    workers = gang(2, is_gang=False)
    with pytest.raises(ValueError, match=r"^own$"):
        workers.broadcast("act", [("raise", ValueError("own")), ("sleep", 3.0)])
    assert workers.broadcast("act", [(None, None)] * 2) == [0, 1]


def test_a_stopped_rank_is_named_with_its_stack_and_can_be_restarted(gang):
    workers = gang(2, deadline_s=3.0)
    with pytest.raises(GangTimeout, match=r"(?s)learner.act did not finish in 3 s \(worker 1\).*time.sleep|act \("):
        workers.broadcast("act", [(None, None), ("sleep", 600.0)])
    workers.respawn()
    assert workers.broadcast("act", [(None, None)] * 2) == [0, 1]


class Faulty(LanguageModelObjective):
    """Fails on rank 1 with ``error``; a rank that is computed alone would wait for it in the gradients' all-reduce."""

    def __init__(self, error):
        object.__setattr__(self, "error", error)

    def loss(self, engine, batch, device):
        if torch.distributed.get_rank() == 1:
            raise self.error
        return LanguageModelObjective().loss(engine, batch, device)


@pytest.fixture(scope="module")
def learners(tmp_path_factory):
    """learners() starts two joined ranks of a tiny model, at ZeRO-2 on gloo."""
    values = {k: v for k, v in TINY.items() if k != "model_type"} | {"pad_token_id": 0}
    path = tmp_path_factory.mktemp("model")
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=50, **values)).save_pretrained(path)
    config = LearnerConfig(zero_stage=2, num_workers=2, micro_batch_tokens=16)
    roles = [Role(name="actor", kind="policy", model=ModelConfig(path=str(path)), lr=0.1)]
    arguments = {"config": config, "roles": roles, "device": "cpu", "num_threads": 1, "deadline_s": 120.0}
    groups = []

    def start():
        groups.append(
            WorkerGroup(
                "learner",
                LearnerWorker,
                2,
                arguments=lambda index: arguments,
                options=lambda index: {"num_cpus": 0, "runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT)}}},
                deadline_s=120.0,
                max_restarts=0,
                gang=True,
            )
        )
        join(groups[-1])
        return groups[-1]

    yield start
    for workers in groups:
        workers.kill()


def join(workers):
    """Joins the ranks of a learner."""
    address, port = workers.host(0), workers.broadcast("free_port")[0]
    workers.map("start", [(rank, len(workers), address, port) for rank in range(len(workers))])


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (ValueError("no labels"), WorkerFailed, "learner worker 1 failed in update_on: ValueError: no labels"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
            BadInput,
            r"learner rank 1 ran out of memory in update, at a micro-batch of 2 rows and 1\d tokens .*micro_batch_tokens",
        ),
    ],
    ids=["error", "out-of-memory"],
)
def test_the_error_of_a_learner_rank_ends_an_update_in_which_the_other_waits(learners, error, kind, sentence):
    workers = learners()
    rows = [np.arange(8)]
    tokens, mask = [np.full(6, 3, np.int32)] * 8, [np.r_[0, np.ones(5)]] * 8
    batch = from_sequences(tokens, response_mask=mask, prompt_length=[1] * 8, group=np.arange(8), seed=np.arange(8))
    sound = LossTerm(objective=LanguageModelObjective(), coef=1.0, batch=None, rows=rows)
    workers.broadcast("update_on", "actor", [sound], ray.put(batch))
    began = time.monotonic()
    with pytest.raises(kind, match=sentence):
        workers.broadcast("update_on", "actor", [replace(sound, objective=Faulty(error))], ray.put(batch))
    assert time.monotonic() - began < 15.0
