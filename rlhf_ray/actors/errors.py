"""Errors of calls on workers: which of them restart workers, and which end the run."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ray.exceptions import RayActorError, RayError, RayTaskError

from ..config import BadInput

DEAD = (RayActorError,)
CONNECTION_TEXT = re.compile(
    r"connection (closed|reset|refused|aborted)|broken pipe|socket timeout|timed out waiting|gloo/transport"
    r"|gloo connect|nccl (error|communicator)|nccl(Remote|System|Internal)Error|processgroupnccl|caused pair closure",
    re.IGNORECASE,
)


class WorkerLost(RuntimeError):
    """A worker died, or could no longer reach the others. ``group`` is its role, ``index`` its number in the group."""

    def __init__(self, group: str, index: int, cause: BaseException) -> None:
        verb = "died" if isinstance(cause, DEAD) else "lost the others"
        super().__init__(f"{group} worker {index} {verb}: {first_line(cause)}")
        self.group, self.index = group, index


class WorkerFailed(RuntimeError):
    """A worker's call raised an error that a restart would not fix. The message names the worker and the error."""

    def __init__(self, group: str, index: int, stage: str, cause: BaseException) -> None:
        super().__init__(f"{group} worker {index} failed in {stage}: {type(cause).__name__}: {first_line(cause)}")
        self.group, self.index = group, index


class StageTimeout(RuntimeError):
    """A stage passed its deadline. The message has the stage, the workers it waits for, and their Python stacks."""


class GangTimeout(StageTimeout):
    """A stage of workers that wait for each other passed its deadline; a restart of all of them may help."""


def unwrap(error: RayError) -> BaseException:
    """The exception that a worker raised, without Ray's wrapping: BadInput of a worker stays BadInput.

    An error of Ray itself, like a lost object, is returned as it is.
    """
    if not isinstance(error, RayTaskError):
        return error
    return error.cause if isinstance(error.cause, BaseException) else error.as_instanceof_cause()


def is_infrastructure(error: BaseException) -> bool:
    """Whether a restart may help: an error of Ray, a process group, or a connection, and not of the job.

    torch has classes for NCCL's errors, which are recognised by name so that torch need not be imported here. gloo's
    are plain RuntimeErrors, which only their text tells apart. Ray replaces an error that cannot be pickled by a plain
    RayError, so that is an error of the job.
    """
    if type(error) is RayError:
        return False
    if isinstance(error, RayError | ConnectionError):
        return True
    if any(ancestor.__name__ == "DistError" for ancestor in type(error).__mro__):
        return True
    return type(error) is RuntimeError and CONNECTION_TEXT.search(str(error)) is not None


def index_of_cause(errors: Mapping[int, RayError]) -> int:
    """The worker whose error explains the others; ``errors`` by worker, in the order in which they came.

    The first error of the job itself comes before a death, and a death before a lost connection. For example, if rank 1
    is killed, rank 0 reports a closed connection, possibly before Ray reports the death of rank 1.
    """
    jobs_own = [index for index, error in errors.items() if not is_infrastructure(unwrap(error))]
    deaths = [index for index, error in errors.items() if isinstance(error, DEAD)]
    return next(iter([*jobs_own, *deaths, *errors]))


def gang_error(role: str, index: int, stage: str, error: RayError) -> BaseException:
    """What the call of a gang raises for the error of a worker: WorkerLost, BadInput as it is, or WorkerFailed."""
    cause = unwrap(error)
    if isinstance(cause, BadInput):
        return cause
    if is_infrastructure(cause):
        return WorkerLost(role, index, cause)
    failed = WorkerFailed(role, index, stage, cause)
    failed.__cause__ = error  # its text has the worker's traceback
    return failed


def first_line(error: BaseException) -> str:
    """The first line of an error's text that is not empty, or its type's name."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
