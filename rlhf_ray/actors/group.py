"""WorkerGroup: plain worker classes as Ray actors; spawn, call, replace. The only wrapper around Ray actors."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import psutil
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError

from ..run.events import notice

DEAD = (ActorDiedError, ActorUnavailableError, RayActorError)


class WorkerLost(RuntimeError):
    """A worker died; ``group`` is its role, ``index`` its place."""

    def __init__(self, group: str, index: int, cause: BaseException) -> None:
        super().__init__(f"{group} worker {index} died: {str(cause).splitlines()[0]}")
        self.group, self.index = group, index


class StageTimeout(RuntimeError):
    """A stage passed its deadline; the message names the stage, the actors it waits for, and their Python stacks."""


class WorkerGroup:
    """``count`` actors of a plain class. ``make(index)`` gives the constructor's arguments, ``options(index)`` Ray's.

    ``on_start(handle)``, where given, is called with each new actor before it serves: a replacement is caught up there.
    """

    def __init__(
        self,
        role: str,
        cls: type,
        count: int,
        make: Callable[[int], tuple[Any, ...]],
        options: Callable[[int], dict[str, Any]],
        deadline_s: float,
        max_restarts: int,
    ) -> None:
        self.role, self.cls, self.make, self.options = role, cls, make, options
        self.deadline_s, self.max_restarts, self.num_restarts = deadline_s, max_restarts, 0
        self.lock = threading.RLock()  # a death may be seen by two threads
        self.on_start: Callable[[Any], None] | None = None
        self.ended = False
        self.actors: list[Any] = [self._spawn(i) for i in range(count)]

    def __len__(self) -> int:
        return len(self.actors)

    def _spawn(self, index: int) -> Any:
        remote: Any = ray.remote(self.cls).options(max_restarts=0, max_concurrency=1, **self.options(index))
        return remote.remote(*self.make(index))

    def broadcast(self, method: str, *args: Any) -> list[Any]:
        """Calls all workers with the same arguments and returns their answers in order. Raises WorkerLost, StageTimeout."""
        return self.collect([getattr(actor, method).remote(*args) for actor in self.actors], method)

    def map(self, method: str, arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Calls worker i with the i-th arguments."""
        calls = [getattr(actor, method).remote(*args) for actor, args in zip(self.actors, arguments, strict=True)]
        return self.collect(calls, method)

    def stream(self, method: str, *args: Any) -> Iterator[Any]:
        """Like :meth:`broadcast` for a method that yields: yields a reference to each value of worker 0 as soon as it is made.

        The caller owns the values, which stay in the object store, so that they outlive the worker.
        """
        streams = [getattr(actor, method).options(num_returns="streaming").remote(*args) for actor in self.actors]
        while True:
            if not ray.wait([streams[0]], timeout=self.deadline_s)[0]:
                raise StageTimeout(self.describe_hang(method, [0]))
            try:
                reference = next(streams[0])
            except StopIteration:
                break
            yield reference
        self.collect([stream.completed() for stream in streams], method)

    def host(self, index: int) -> str:
        """Address of the node a worker runs on, by which Ray's other nodes reach it."""
        return str(self.collect([self.actors[index].__ray_call__.remote(_host)], "host")[0])

    def call_with_restart(self, method: str, *args: Any) -> None:
        """Calls all workers of a group that can lose some: dead ones are replaced, caught up, and all called again."""
        calls, lost = [getattr(actor, method).remote(*args) for actor in self.actors], []
        for index, call in enumerate(calls):
            try:
                ray.get(call, timeout=self.deadline_s)
            except DEAD:
                lost.append(index)
            except GetTimeoutError:
                raise StageTimeout(self.describe_hang(method, [index])) from None
        for index in lost:
            self.replace(index)
        if lost:
            self.call_with_restart(method, *args)

    def collect(self, refs: list[Any], stage: str) -> list[Any]:
        """The answers of one call on each worker, in order."""
        self._wait(refs, stage)
        answers = []
        for index, ref in enumerate(refs):
            try:
                answers.append(ray.get(ref))
            except DEAD as error:
                raise WorkerLost(self.role, index, error) from None
            except RayTaskError as error:
                raise unwrap(error) from None
        return answers

    def _wait(self, refs: list[Any], stage: str) -> None:
        until, pending = time.monotonic() + self.deadline_s, list(refs)
        while pending:
            done, pending = ray.wait(pending, timeout=max(0.0, until - time.monotonic()))
            if not done:
                raise StageTimeout(self.describe_hang(stage, [refs.index(r) for r in pending]))
            try:
                ray.get(done, timeout=0)  # a dead rank leaves the others waiting in a collective: do not wait for them
            except DEAD as error:
                raise WorkerLost(self.role, refs.index(done[0]), error) from None
            except (RayTaskError, GetTimeoutError):
                pass  # raised in order, by collect

    def describe_hang(self, stage: str, waiting: list[int]) -> str:
        """One line that names stage and workers, then their Python stacks where they can be read."""
        head = f"{self.role}.{stage} did not finish in {self.deadline_s:.0f} s (worker {', '.join(map(str, waiting))})"
        return head + "\n" + "\n".join(stacks(type_name=self.cls.__name__))

    def replace(self, index: int, dead: Any = None) -> None:
        """A new actor in place of a dead one, caught up by ``on_start``. Raises RuntimeError past max_restarts.

        ``dead``, where given, is the actor seen to be dead: nothing happens where it has been replaced already.
        """
        with self.lock:
            if dead is not None and dead is not self.actors[index]:
                return
            self._count_restart()
            notice(f"{self.role} worker {index} died and is replaced")
            ray.kill(self.actors[index])
            self.actors[index] = self._spawn(index)
            self.restore_worker(index)

    def restore_worker(self, index: int) -> None:
        """Tells a worker by ``on_start`` what it must know to serve; one that dies of it is replaced in its turn."""
        try:
            if self.on_start is not None:
                self.on_start(self.actors[index])
        except DEAD:
            self.replace(index)

    def _count_restart(self) -> None:
        if self.ended:
            raise RuntimeError(f"the {self.role} workers were ended")
        self.num_restarts += 1
        if self.num_restarts > self.max_restarts:
            raise RuntimeError(
                f"{self.role} workers died {self.num_restarts} times, more than cluster.max_restarts = {self.max_restarts}"
            )

    def kill(self) -> None:
        """Ends all workers for good."""
        self.ended = True
        for actor in self.actors:
            ray.kill(actor)

    def respawn(self) -> None:
        """Ends all workers and starts new ones, which hold nothing yet: the restart of a learner group."""
        self._count_restart()
        for actor in self.actors:
            ray.kill(actor)
        self.actors = [self._spawn(i) for i in range(len(self.actors))]


def _host(worker: Any) -> str:
    return str(ray.util.get_node_ip_address())


def unwrap(error: RayTaskError) -> BaseException:
    """The exception a worker raised, without Ray's wrapping, so that bad input found by a worker stays bad input."""
    return error.cause if isinstance(error.cause, BaseException) else error.as_instanceof_cause()


def stacks(type_name: str) -> list[str]:
    """py-spy dumps of the actors of a class on this machine; empty where py-spy may not look."""
    found = []
    for process in psutil.process_iter(["cmdline", "pid"]):
        if any(f"ray::{type_name}" in part for part in process.info["cmdline"] or []):
            command = ["py-spy", "dump", "--pid", str(process.info["pid"])]
            try:
                found.append(subprocess.run(command, capture_output=True, text=True, timeout=20).stdout)
            except (OSError, subprocess.TimeoutExpired):
                continue
    return found
