"""WorkerGroup: plain worker classes as Ray actors that are called, watched and replaced.

Only this file makes Ray actors out of classes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import ray
from ray.exceptions import GetTimeoutError, RayError

from ..run.events import notice
from .errors import DEAD, GangTimeout, StageTimeout, WorkerLost, gang_error, index_of_cause, unwrap
from .progress import PROGRESS_GROUP, ProgressClock
from .stacks import process_of, stacks

GRACE_S = 10.0  # for the other workers to return or fail too, after the first error of a call


class WorkerGroup:
    """``count`` actors of a plain class.

    ``arguments(index)`` are the keyword arguments of its constructor, ``options(index)`` Ray's options of the actor.
    ``deadline_s`` limits the time in which no worker gets further with a call, ``max_restarts`` the replacements of the
    whole group. A class that has a method ``progress()``, a count of finished work, is asked for it in a thread of its
    own while a call runs. ``on_start(actor)``, if it is set, prepares each replacement before it serves.

    Workers of a ``gang`` wait for each other within a call, so an error of one leaves the others stuck. Its calls raise
    WorkerLost or GangTimeout if a restart of all may help. They raise a worker's BadInput as it is, any other error as
    WorkerFailed, and then the workers that are stuck have been killed.
    """

    def __init__(
        self,
        role: str,
        cls: type,
        count: int,
        *,
        arguments: Callable[[int], dict[str, Any]],
        options: Callable[[int], dict[str, Any]],
        deadline_s: float,
        max_restarts: int,
        gang: bool = False,
    ) -> None:
        self.role, self.cls, self.arguments, self.options = role, cls, arguments, options
        self.deadline_s, self.max_restarts, self.num_restarts = deadline_s, max_restarts, 0
        self.gang, self.counts_progress = gang, hasattr(cls, "progress")
        self.lock = threading.RLock()  # two threads may see the same death
        self.on_start: Callable[[Any], None] | None = None
        self.ended = False
        self.processes: dict[Any, Any] = {}  # of each actor, a reference to where it runs
        self.actors: list[Any] = [self._spawn(index) for index in range(count)]

    def __len__(self) -> int:
        return len(self.actors)

    def _spawn(self, index: int) -> Any:
        remote: Any = ray.remote
        cls = remote(concurrency_groups={PROGRESS_GROUP: 1})(self.cls) if self.counts_progress else remote(self.cls)
        options = {"max_restarts": 0, "max_concurrency": 1, **self.options(index)}
        actor = cls.options(**options).remote(**self.arguments(index))
        self.processes[actor] = actor.__ray_call__.remote(process_of)
        return actor

    def broadcast(self, method: str, *args: Any) -> list[Any]:
        """Calls all workers with the same arguments; returns their results in order.

        Raises WorkerLost or StageTimeout.
        """
        return self.collect([getattr(actor, method).remote(*args) for actor in self.actors], method)

    def map(self, method: str, arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Calls worker i with the i-th arguments."""
        calls = [getattr(actor, method).remote(*args) for actor, args in zip(self.actors, arguments, strict=True)]
        return self.collect(calls, method)

    def stream(self, method: str, *args: Any) -> Iterator[Any]:
        """Calls a method that yields on all workers; yields references to what worker 0 yields, as it is made.

        The caller owns the values, which stay in the object store, so that they outlive the worker.
        """
        streams = [getattr(actor, method).options(num_returns="streaming").remote(*args) for actor in self.actors]
        running: dict[Any, int] = {stream: index for index, stream in enumerate(streams)}
        newest: dict[int, Any] = {}  # a generator's error is the last thing that it yields
        errors: dict[int, RayError] = {}
        clock = self._clock()
        while running and not _has_death(errors):
            stream = clock.wait([*running])
            if stream is None:
                if errors:
                    break
                raise self.timeout(method, sorted(running.values()))
            index = running[stream]
            try:
                newest[index] = next(stream)
            except StopIteration:
                del running[stream]
            else:
                if index == 0:  # not looked into: it may be large, and on another node
                    yield newest[index]
                    if not errors:
                        clock.restart()
                    continue
            error = _error_of(newest[index]) if index in newest else None
            if error is not None:
                errors.setdefault(index, error)
                clock.shorten(GRACE_S)
        if errors:
            self._raise(errors, list(running.values()), method)

    def host(self, index: int) -> str:
        """Address at which Ray's other nodes reach the node of a worker."""
        return str(self.collect([self.actors[index].__ray_call__.remote(_host)], "host")[0])

    def sort_by_device(self) -> None:
        """Renumbers the workers by node and GPU: those of a node are contiguous. Others of a node keep their order.

        Ray promises no order of a placement group's bundles. For groups whose workers are only replaced together.
        """
        devices = self.collect([actor.__ray_call__.remote(_device) for actor in self.actors], "device")
        order = sorted(range(len(self.actors)), key=lambda index: devices[index])
        self.actors = [self.actors[index] for index in order]

    def call_with_restart(self, method: str, *args: Any) -> None:
        """Calls all workers of a group that may lose some. If any are dead, replaces them and calls all again."""
        calls = [getattr(actor, method).remote(*args) for actor in self.actors]
        dead = []
        for index, call in enumerate(calls):
            try:
                ray.get(call, timeout=self.deadline_s)
            except DEAD:
                dead.append(index)
            except GetTimeoutError:
                raise self.timeout(method, [index]) from None
        for index in dead:
            self.replace(index)
        if dead:
            self.call_with_restart(method, *args)

    def collect(self, refs: list[Any], stage: str) -> list[Any]:
        """Results of one call on each worker, in order.

        If a worker raises, the others have GRACE_S to end too; then the error that explains the others is raised. See
        the class for what is raised. A death in the group, or an error of a worker that is not in a gang, is raised as
        WorkerLost, or as it is.
        """
        errors, pending = self._wait(refs, stage)
        if errors:
            self._raise(errors, [refs.index(ref) for ref in pending], stage)
        return ray.get(refs)

    def _raise(self, errors: dict[int, RayError], stuck: list[int], stage: str) -> NoReturn:
        """Raises the error that explains the others; see :meth:`collect`. ``stuck`` are workers that have not ended."""
        index = index_of_cause(errors)
        if isinstance(errors[index], DEAD):
            raise WorkerLost(self.role, index, errors[index]) from None
        if not self.gang:
            raise unwrap(errors[index]) from None
        for i in stuck:
            ray.kill(self.actors[i])
        raise gang_error(self.role, index, stage, errors[index])

    def _wait(self, refs: list[Any], stage: str) -> tuple[dict[int, RayError], list[Any]]:
        """Waits for all calls, or for GRACE_S after the first error; not at all after a death.

        Returns the errors by worker, in the order in which they came, and the calls that have not ended. Raises
        StageTimeout.
        """
        clock, pending = self._clock(), list(refs)
        errors: dict[int, RayError] = {}
        while pending and not _has_death(errors):
            ref = clock.wait(pending)
            if ref is None:
                if errors:
                    break
                raise self.timeout(stage, [refs.index(ref) for ref in pending])
            pending.remove(ref)
            error = _error_of(ref)
            if error is not None:
                errors[refs.index(ref)] = error
                clock.shorten(GRACE_S)
        return errors, pending

    def _clock(self) -> ProgressClock:
        return ProgressClock(self.deadline_s, self.actors if self.counts_progress else ())

    def timeout(self, stage: str, waiting: list[int]) -> StageTimeout:
        """The error of a stage that passed its deadline while it waited for these workers."""
        return (GangTimeout if self.gang else StageTimeout)(self.describe_hang(stage, waiting))

    def describe_hang(self, stage: str, waiting: list[int]) -> str:
        """One line with the stage and the workers that it waits for, then their Python stacks if they can be read."""
        workers = ", ".join(map(str, waiting))
        head = f"{self.role}.{stage} did not get further in {self.deadline_s:.0f} s (worker {workers})"
        return "\n".join([head, *stacks({index: self.processes[self.actors[index]] for index in waiting})])

    def replace(self, index: int, dead: Any = None) -> None:
        """Starts a new actor in place of a dead one, and prepares it. Raises RuntimeError after max_restarts.

        ``dead`` is the actor that was seen to be dead: nothing happens if it has been replaced already.
        """
        with self.lock:
            if dead is not None and dead is not self.actors[index]:
                return
            self._count_restart()
            notice(f"{self.role} worker {index} died and is replaced")
            ray.kill(self.actors[index])
            self.actors[index] = self._spawn(index)
            if self.ended:  # kill(), which takes no lock, may have missed it
                ray.kill(self.actors[index])
            self.restore_worker(index)

    def restore_worker(self, index: int) -> None:
        """Prepares a worker by ``on_start``. If the worker dies of it, it is replaced too."""
        try:
            if self.on_start is not None:
                self.on_start(self.actors[index])
        except DEAD:
            self.replace(index)
        except GetTimeoutError:
            raise self.timeout("receive", [index]) from None

    def _count_restart(self) -> None:
        if self.ended:
            raise RuntimeError(f"the {self.role} workers were ended")
        self.num_restarts += 1
        if self.num_restarts > self.max_restarts:
            raise RuntimeError(
                f"{self.role} workers died {self.num_restarts} times, "
                f"more than cluster.max_restarts = {self.max_restarts}"
            )

    def kill(self) -> None:
        """Ends all workers for good. Takes no lock, since a replacement may hold it while it is prepared."""
        self.ended = True
        for actor in self.actors:
            ray.kill(actor)

    def respawn(self) -> None:
        """Ends all workers and starts new ones, without ``on_start``."""
        self._count_restart()
        for actor in self.actors:
            ray.kill(actor)
        self.actors = [self._spawn(i) for i in range(len(self.actors))]


def _host(worker: Any) -> str:
    return str(ray.util.get_node_ip_address())


def _has_death(errors: dict[int, RayError]) -> bool:
    return any(isinstance(error, DEAD) for error in errors.values())


def _error_of(ref: Any) -> RayError | None:
    """The error of a call that has ended; None if it returned, also if its result has not arrived yet."""
    try:
        ray.get(ref, timeout=0)
    except GetTimeoutError:
        return None
    except RayError as error:
        return error
    return None


def _device(worker: Any) -> tuple[str, str, list[str]]:
    """Address and id of the worker's node, and its GPUs, numbers as "0003"."""
    context = ray.get_runtime_context()
    return ray.util.get_node_ip_address(), context.get_node_id(), [str(gpu).zfill(4) for gpu in ray.get_gpu_ids()]
