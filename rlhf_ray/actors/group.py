"""WorkerGroup: plain worker classes as Ray actors that are called, watched and replaced.

Only this file makes Ray actors out of classes.
"""

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
    """A worker died. ``group`` is its role, ``index`` its number in the group."""

    def __init__(self, group: str, index: int, cause: BaseException) -> None:
        super().__init__(f"{group} worker {index} died: {str(cause).splitlines()[0]}")
        self.group, self.index = group, index


class StageTimeout(RuntimeError):
    """A stage passed its deadline. The message has the stage, the workers it waits for, and their Python stacks."""


class WorkerGroup:
    """``count`` actors of a plain class.

    ``arguments(index)`` are the keyword arguments of its constructor, ``options(index)`` Ray's options of the actor.
    ``deadline_s`` limits each call, ``max_restarts`` the replacements of the whole group. ``on_start(actor)``, if it is
    set, prepares each replacement before it serves.
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
    ) -> None:
        self.role, self.cls, self.arguments, self.options = role, cls, arguments, options
        self.deadline_s, self.max_restarts, self.num_restarts = deadline_s, max_restarts, 0
        self.lock = threading.RLock()  # two threads may see the same death
        self.on_start: Callable[[Any], None] | None = None
        self.ended = False
        self.actors: list[Any] = [self._spawn(index) for index in range(count)]

    def __len__(self) -> int:
        return len(self.actors)

    def _spawn(self, index: int) -> Any:
        remote: Any = ray.remote(self.cls).options(max_restarts=0, max_concurrency=1, **self.options(index))
        return remote.remote(**self.arguments(index))

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
        """Address at which Ray's other nodes reach the node of a worker."""
        return str(self.collect([self.actors[index].__ray_call__.remote(_host)], "host")[0])

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
                raise StageTimeout(self.describe_hang(method, [index])) from None
        for index in dead:
            self.replace(index)
        if dead:
            self.call_with_restart(method, *args)

    def collect(self, refs: list[Any], stage: str) -> list[Any]:
        """Results of one call on each worker, in order. Raises what a worker raised, WorkerLost or StageTimeout."""
        self._wait(refs, stage)
        results = []
        for index, ref in enumerate(refs):
            try:
                results.append(ray.get(ref))
            except DEAD as error:
                raise WorkerLost(self.role, index, error) from None
            except RayTaskError as error:
                raise unwrap(error) from None
        return results

    def _wait(self, refs: list[Any], stage: str) -> None:
        deadline, pending = time.monotonic() + self.deadline_s, list(refs)
        while pending:
            done, pending = ray.wait(pending, timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                raise StageTimeout(self.describe_hang(stage, [refs.index(ref) for ref in pending]))
            try:
                ray.get(done, timeout=0)  # not in order: while one rank is dead, the others wait in a collective
            except DEAD as error:
                raise WorkerLost(self.role, refs.index(done[0]), error) from None
            except (RayTaskError, GetTimeoutError):
                pass  # raised in order, by collect

    def describe_hang(self, stage: str, waiting: list[int]) -> str:
        """One line with the stage and the workers that it waits for, then their Python stacks if they can be read."""
        head = f"{self.role}.{stage} did not finish in {self.deadline_s:.0f} s (worker {', '.join(map(str, waiting))})"
        return head + "\n" + "\n".join(stacks(type_name=self.cls.__name__))

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
            self.restore_worker(index)

    def restore_worker(self, index: int) -> None:
        """Prepares a worker by ``on_start``. If the worker dies of it, it is replaced too."""
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
                f"{self.role} workers died {self.num_restarts} times, "
                f"more than cluster.max_restarts = {self.max_restarts}"
            )

    def kill(self) -> None:
        """Ends all workers for good."""
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


def unwrap(error: RayTaskError) -> BaseException:
    """The exception that a worker raised, without Ray's wrapping: BadInput of a worker stays BadInput."""
    return error.cause if isinstance(error.cause, BaseException) else error.as_instanceof_cause()


def stacks(type_name: str) -> list[str]:
    """py-spy dumps of the actors of a class on this machine; empty if py-spy has no permission."""
    dumps = []
    for process in psutil.process_iter(["cmdline", "pid"]):
        if any(f"ray::{type_name}" in part for part in process.info["cmdline"] or []):
            command = ["py-spy", "dump", "--pid", str(process.info["pid"])]
            try:
                dumps.append(subprocess.run(command, capture_output=True, text=True, timeout=20).stdout)
            except (OSError, subprocess.TimeoutExpired):
                continue
    return dumps
