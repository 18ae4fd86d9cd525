"""The step as a simulation: the loop of train/rl.py event by event, on devices that roles share or own.

Processes are generators. What they yield is waited for: :class:`Work` on a device, a :class:`Done` of another process, or a list of
these. Work that shares a device runs at one speed, so that two threads for each of three workers on two cores take three
times as long: processor sharing, exact between events.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

Process = Generator[Any, None, None]


@dataclass(frozen=True)
class Work:
    """``seconds`` of work, as it takes alone, on the device of this name, with ``demand`` of its capacity."""

    device: str
    seconds: float
    demand: float = 1.0


@dataclass(eq=False)
class Done:
    """Something that will have happened; who waits goes on then."""

    happened: bool = False
    waiting: list[_Running] = field(default_factory=list)


@dataclass(eq=False)
class _Running:
    process: Process
    done: Done
    missing: int = 0


@dataclass(eq=False)
class _Share:
    """A device: what is left of each piece of work on it, as of time ``at``."""

    capacity: float
    left: dict[Done, tuple[float, float]] = field(default_factory=dict)
    at: float = 0.0
    stamp: int = 0

    @property
    def speed(self) -> float:
        return min(1.0, self.capacity / max(1e-12, sum(demand for _, demand in self.left.values())))


class Simulation:
    """A clock over processes. ``capacity`` is what each device has; one that it does not name has 1."""

    def __init__(self, capacity: dict[str, float]) -> None:
        self.now = 0.0
        self.capacity = capacity
        self.devices: dict[str, _Share] = {}
        self.events: list[tuple[float, int, str, int]] = []
        self.count = 0
        self.busy: dict[str, float] = {}

    def start(self, process: Process) -> Done:
        """Runs a process up to its first wait; what is returned happens when it ends."""
        running = _Running(process, Done())
        self._advance(running)
        return running.done

    def run(self) -> float:
        """Until nothing is left to happen; returns the time."""
        while self.events:
            time, _, name, stamp = heapq.heappop(self.events)
            share = self.devices[name]
            if stamp != share.stamp:
                continue
            self.now = time
            self._pass(share)
            over = [done for done, (seconds, _) in share.left.items() if seconds <= 1e-9]
            for done in over:
                del share.left[done]
            self._plan(name)
            for done in over:
                self.happen(done)
        return self.now

    def happen(self, done: Done) -> None:
        """Lets go on who waited for it."""
        done.happened = True
        for running in done.waiting:
            running.missing -= 1
            if not running.missing:
                self._advance(running)
        done.waiting = []

    def _advance(self, running: _Running) -> None:
        while True:
            try:
                wanted = next(running.process)
            except StopIteration:
                self.happen(running.done)
                return
            waits = [self._begin(w) for w in (wanted if isinstance(wanted, list) else [wanted])]
            open_ = [w for w in waits if not w.happened]
            if open_:
                running.missing = len(open_)
                for done in open_:
                    done.waiting.append(running)
                return

    def _begin(self, wanted: Work | Done) -> Done:
        if isinstance(wanted, Done):
            return wanted
        done = Done(happened=wanted.seconds <= 0)
        if done.happened:
            return done
        share = self.devices.setdefault(wanted.device, _Share(self.capacity.get(wanted.device, 1.0), at=self.now))
        self._pass(share)
        share.left[done] = (wanted.seconds, wanted.demand)
        self.busy[wanted.device] = self.busy.get(wanted.device, 0.0) + wanted.seconds * wanted.demand
        self._plan(wanted.device)
        return done

    def _pass(self, share: _Share) -> None:
        spent = (self.now - share.at) * share.speed
        share.left = {done: (seconds - spent, demand) for done, (seconds, demand) in share.left.items()}
        share.at = self.now

    def _plan(self, name: str) -> None:
        share = self.devices[name]
        share.stamp += 1
        if share.left:
            self.count += 1
            soonest = min(seconds for seconds, _ in share.left.values()) / share.speed
            heapq.heappush(self.events, (self.now + max(0.0, soonest), self.count, name, share.stamp))


@dataclass(frozen=True)
class Stages:
    """One step in seconds of work, each as it takes alone.

    ``chunks`` (steps, chunks) of generation, drawn anew for each step; ``score`` of one chunk's rewards, ``wait`` the part of it
    that only waits (a service); ``annotate``, ``learn`` and ``sync`` of the whole step.
    """

    chunks: Sequence[Sequence[float]]
    score: float
    wait: float
    annotate: float
    learn: float
    sync: float


@dataclass(frozen=True)
class Layout:
    """Who computes where: device names of rollout workers, reward workers and learner ranks; threads of each, and capacities."""

    rollout: Sequence[str]
    reward: Sequence[str]
    learner: Sequence[str]
    demand: float
    capacity: dict[str, float]


class Step:
    """The loop of train/rl.py on simulated workers: what `time/...` of metrics.jsonl would be."""

    def __init__(self, stages: Stages, layout: Layout, ahead: int) -> None:
        self.stages, self.layout, self.ahead = stages, layout, ahead
        self.clock = Simulation(layout.capacity)
        self.num_steps = len(stages.chunks)
        self.generated: dict[int, Done] = {}
        self.scored: dict[int, list[Done]] = {}
        self.turns = [0.0] * len(layout.reward)
        self.last = Done(happened=True)
        self.seconds: list[dict[str, float]] = []

    def run(self) -> list[dict[str, float]]:
        """Seconds by stage of each step."""
        self.clock.start(self._loop())
        self.clock.run()
        return self.seconds

    def _loop(self) -> Process:
        s, clock = self.stages, self.clock
        for step in range(self.num_steps):
            began = clock.now
            found: dict[str, float] = {}

            def lap(name: str, found: dict[str, float] = found, began: float = began) -> None:
                found[name] = clock.now - began - sum(found.values())

            for later in range(step, min(step + self.ahead, self.num_steps - 1) + 1):
                self._launch(later)
            yield self.generated[step]
            yield list(self.scored[step])
            lap("rollout")
            yield self._on_learner(s.annotate)
            lap("annotate")
            yield self._on_learner(s.learn)
            lap("learn")
            yield list(self.generated.values())
            lap("wait")
            yield self._on_learner(s.sync)
            lap("sync")
            self.seconds.append({**found, "step": clock.now - began})
            del self.generated[step], self.scored[step]

    def _on_learner(self, seconds: float) -> list[Work | Done]:
        return [Work(device, seconds, self.layout.demand) for device in self.layout.learner]

    def _launch(self, step: int) -> None:
        """One order at a time is generated, as in train/rollout_queue.py."""
        if step not in self.generated:
            self.scored[step] = []
            self.generated[step] = self.last = self.clock.start(self._generate(step, self.last))

    def _generate(self, step: int, before: Done) -> Process:
        yield before
        queue = deque(self.stages.chunks[step])
        yield [self.clock.start(self._worker(step, queue, device)) for device in self.layout.rollout]

    def _worker(self, step: int, queue: deque[float], device: str) -> Process:
        while queue:
            yield Work(device, queue.popleft(), self.layout.demand)
            index = min(range(len(self.turns)), key=lambda i: self.turns[i])
            self.turns[index] += 1
            self.scored[step].append(self.clock.start(self._score(self.layout.reward[index], index)))

    def _score(self, device: str, index: int) -> Process:
        yield Work(device, self.stages.score, self.layout.demand)
        yield Work(f"service of reward worker {index}", self.stages.wait)
