"""Which errors of workers restart a gang, and which of several is the cause."""

import threading

import pytest
import torch
from ray.exceptions import ActorDiedError, ObjectLostError, RayTaskError

from rlhf_ray.actors.errors import WorkerFailed, WorkerLost, first_line, gang_error, index_of_cause, is_infrastructure
from rlhf_ray.config import BadInput

GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3822"
GLOO_TIMEOUT = "Timed out waiting 90000ms for send/recv operation to complete"


def task_error(cause):
    """Ray's error of a task that raised ``cause``."""
    return RayTaskError("update_on", f"Traceback ...\n{cause!r}", cause)


@pytest.mark.parametrize(
    ("error", "restarts"),
    [
        (RuntimeError(GLOO), True),
        (RuntimeError(GLOO_TIMEOUT), True),
        (torch.distributed.DistBackendError("NCCL error in: ... unhandled system error"), True),
        (torch.distributed.DistNetworkError("The client socket has timed out"), True),
        (ConnectionResetError(104, "Connection reset by peer"), True),
        (ObjectLostError("ab" * 14, "owner", "call site"), True),
        (ValueError("Timed out waiting for a value that the loss needs"), False),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (NotImplementedError("connection closed"), False),  # a RuntimeError, but of the code
        (BadInput("data: connection reset"), False),
    ],
    ids=lambda value: str(value)[:30],
)
def test_errors_of_connections_restart_and_errors_of_the_job_do_not(error, restarts):
    assert is_infrastructure(error) is restarts


def test_the_cause_is_the_jobs_own_error_then_a_death_then_a_lost_connection():
    lost, own, later = task_error(RuntimeError(GLOO)), task_error(ValueError("loss")), task_error(KeyError("x"))
    dead = ActorDiedError()
    assert index_of_cause({2: lost, 0: dead, 1: own, 3: later}) == 1
    assert index_of_cause({2: lost, 0: dead}) == 0
    assert index_of_cause({2: lost, 3: lost}) == 2


def test_what_a_gang_raises_for_an_error():
    lost = gang_error("learner", 1, "update", task_error(RuntimeError(GLOO)))
    assert isinstance(lost, WorkerLost)
    assert "learner worker 1 lost the others" in str(lost)
    bad = BadInput("data: no rows")
    assert gang_error("learner", 1, "update", task_error(bad)) is bad
    error = task_error(ValueError("\nlabels are missing\nmore"))
    failed = gang_error("learner", 1, "update", error)
    assert isinstance(failed, WorkerFailed)
    assert str(failed) == "learner worker 1 failed in update: ValueError: labels are missing"
    assert failed.__cause__ is error  # whose text has the worker's traceback


class Unpicklable(Exception):
    """An error that holds what cannot leave its process."""

    def __init__(self):
        super().__init__("no labels")
        self.lock = threading.Lock()


def test_an_error_that_cannot_be_pickled_is_the_jobs_own():
    error = task_error(Unpicklable())
    failed = gang_error("learner", 1, "update", error)
    assert isinstance(failed, WorkerFailed)
    assert "Unpicklable" in str(failed)
    assert index_of_cause({0: ActorDiedError(), 1: error}) == 1


def test_an_error_without_text_has_its_types_name():
    assert first_line(MemoryError()) == "MemoryError"
