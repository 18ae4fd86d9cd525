"""A worker's error is the run's error: raised within seconds with its worker, whatever the others do."""

import os
import signal
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_ray.actors import group
from rlhf_ray.actors.errors import GangTimeout, StageTimeout, WorkerFailed, WorkerLost
from rlhf_ray.actors.group import WorkerGroup
from rlhf_ray.actors.placement import Placement, cluster_nodes, plan_placement, worker_demand
from rlhf_ray.batch import from_sequences
from rlhf_ray.config import BadInput, LearnerConfig, ModelConfig, parse
from rlhf_ray.data.prompts import Prompts
from rlhf_ray.learner.objectives import LossTerm
from rlhf_ray.learner.worker import LearnerWorker, Role
from rlhf_ray.tasks.language_model import LanguageModelObjective
from rlhf_ray.train.dispatch import Dispatcher, RolloutRequest
from rlhf_ray.train.learner_group import LearnerGroup
from tests.benchmarks.zero_cost import Engine, Scorer
from tests.helpers import ROOT, TINY, rl_job

pytestmark = pytest.mark.integration
LATER = pytest.mark.learning  # much like what CI runs: not there, so that it stays short


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

    def start(count, *, cls=Worker, role="learner", deadline_s=60.0, is_gang=True, arguments=None):
        groups.append(
            WorkerGroup(
                role,
                cls,
                count,
                arguments=arguments or (lambda index: {"index": index}),
                options=lambda index: {"num_cpus": 0, "runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT)}}},
                deadline_s=deadline_s,
                max_restarts=1,
                gang=is_gang,
            )
        )
        ray.get([actor.__ray_ready__.remote() for actor in groups[-1].actors], timeout=60.0)  # longer than a deadline
        return groups[-1]

    yield start
    for workers in groups:
        workers.kill()


def call(workers, method, acts):
    """Calls act or tell, and waits for all of it."""
    return list(workers.stream(method, acts)) if method == "tell" else workers.broadcast(method, acts)


@pytest.mark.parametrize(("method", "broken"), [pytest.param("act", 1, marks=LATER), ("tell", 0)])
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


@pytest.mark.parametrize("method", ["act", pytest.param("tell", marks=LATER)])
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


def test_a_hanging_rank_is_named_with_its_stack_and_can_be_restarted(gang):
    workers = gang(2, deadline_s=3.0)
    with pytest.raises(GangTimeout, match=r"(?s)learner.act did not get further in 3 s \(worker 1\).*act \(") as caught:
        workers.broadcast("act", [(None, None), ("sleep", 600.0)])
    assert "worker 0" not in str(caught.value)
    workers.deadline_s = 60.0  # new processes need longer than three seconds
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


def progress_of(workers):
    """The ranks' counts of micro-batches and other work."""
    return ray.get([actor.progress.options(concurrency_group="progress").remote() for actor in workers.actors])


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        pytest.param(
            ValueError("no labels"),
            WorkerFailed,
            "learner worker 1 failed in update_on: ValueError: no labels",
            marks=LATER,
        ),
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
    before = progress_of(workers)
    workers.broadcast("update_on", "actor", [sound], ray.put(batch))
    assert [count - earlier for count, earlier in zip(progress_of(workers), before, strict=True)] == [2, 2]
    began = time.monotonic()
    with pytest.raises(kind, match=sentence):
        workers.broadcast("update_on", "actor", [replace(sound, objective=Faulty(error))], ray.put(batch))
    assert time.monotonic() - began < 15.0


class Counter:
    """Finishes a piece of work each second, and hangs after ``most`` of them."""

    def __init__(self, most):
        self.most, self.num_finished = most, 0

    def progress(self):
        return self.num_finished

    def work(self, pieces):
        for _ in range(pieces):
            time.sleep(1.0 if self.num_finished < self.most else 600.0)
            self.num_finished += 1
        return self.num_finished

    def tell(self, pieces):
        """Yields only at the end."""
        yield self.work(pieces)


@pytest.mark.parametrize("method", ["work", pytest.param("tell", marks=LATER)])
def test_a_deadline_bounds_progress_and_not_a_stage(gang, method):
    workers = gang(2, cls=Counter, deadline_s=3.0, arguments=lambda index: {"most": 7 + 600 * index})
    if method == "tell":
        assert [ray.get(reference) for reference in workers.stream("tell", 6)] == [6]
    else:
        assert workers.broadcast("work", 6) == [6, 6]
    began = time.monotonic()
    with pytest.raises(GangTimeout, match=rf"(?s)learner.{method} did not get further in 3 s \(worker 0\).*work \("):
        call(workers, method, 3)  # worker 0 hangs in its second piece, worker 1 returns
    assert time.monotonic() - began < 15.0


class SlowEngine(Engine):
    """Needs a second for each piece, and hangs at one of version 1."""

    def generate(self, version, chunk, piece):
        for batch in super().generate(version, chunk, piece):
            time.sleep(600.0 if version else 1.0)
            yield batch


def test_each_piece_of_a_generation_restarts_the_clock(gang):
    prompts = Prompts(
        [np.ones(16, np.int32)] * 20, pa.table({"example_id": range(20), "prompt": ["p"] * 20}), np.arange(20)
    )
    rollout = gang(1, cls=SlowEngine, role="rollout", deadline_s=3.0, is_gang=False, arguments=lambda index: {})
    reward = gang(1, cls=Scorer, role="reward", deadline_s=3.0, is_gang=False, arguments=lambda index: {})
    dispatcher = Dispatcher(rollout=rollout, reward=reward, chunk_prompts=20, run_seed=0, deadline_s=3.0)

    def request(version):
        return RolloutRequest(step=version, version=version, prompts=range(20), first_group=0, samples=1)

    began = time.monotonic()
    assert len(dispatcher.collect(request(0), prompts)) == 20
    assert time.monotonic() - began > 3.5  # four pieces of a second each
    with pytest.raises(
        StageTimeout, match=r"(?s)rollout.generate did not get further in 3 s \(worker 0\).*generate \("
    ):
        dispatcher.collect(request(1), prompts)


def test_a_hang_of_a_gang_is_one_restart_and_a_second_one_ends_the_run(tmp_path):
    job = parse(rl_job(cluster={"device": "cpu"}), "job")
    placement = Placement(plan_placement(job.cluster, worker_demand(learner=job.learner), cluster_nodes()))
    learners = LearnerGroup(job, [], placement)
    try:
        learners.start = learners.remarks = lambda: None  # ranks without models
        calls = []

        def work():
            calls.append(learners.group.actors)
            raise learners.group.timeout("update_on", [0])

        with pytest.raises(GangTimeout):
            learners.recover(work)
        assert len(calls) == 2
        assert calls[0] != calls[1]
        learners.save(tmp_path)
        calls.clear()
        with pytest.raises(GangTimeout):
            learners.recover(work)
        assert len(calls) == 2  # a checkpoint allows another restart
    finally:
        learners.kill()
        placement.remove()
