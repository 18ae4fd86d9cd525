"""A simulation of RL steps: the loop of train/rl.py event by event, on devices that roles share or own.

The first half is a discrete-event simulator in SimPy's terms: a Process is a generator that yields the events it waits
for, and an Environment holds the clock. SimPy itself could replace only Event and Process, about 40 lines. Its resources
queue requests, and workers that share cores need processor sharing, where all of them run at once and more slowly. The
difficult part would stay here, and every installation would have one more dependency.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


class Event:
    """Something that happens once. Processes that wait for it go on then."""

    def __init__(self) -> None:
        self.triggered = False
        self.callbacks: list[Callable[[], None]] = []

    def trigger(self) -> None:
        """Lets the event happen."""
        self.triggered = True
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback()


ProcessGenerator = Generator[Event | Sequence[Event], None, None]
"""The code of a process: it yields an event, or several, and goes on when all of them have happened."""


class Process(Event):
    """A process that runs. As an event, it happens when its generator ends."""

    def __init__(self, generator: ProcessGenerator) -> None:
        super().__init__()
        self.generator = generator
        self.num_awaited = 0
        self._resume()

    def _resume(self) -> None:
        """Runs the generator up to an event that has not happened, or to its end."""
        for awaited in self.generator:
            pending = [e for e in ([awaited] if isinstance(awaited, Event) else awaited) if not e.triggered]
            if pending:
                self.num_awaited = len(pending)
                for event in pending:
                    event.callbacks.append(self._one_happened)
                return
        self.trigger()

    def _one_happened(self) -> None:
        self.num_awaited -= 1
        if not self.num_awaited:
            self._resume()


class Device:
    """A resource under processor sharing: all work on it runs at once, more slowly if it asks for more than there is.

    All work progresses at one rate: 1, or capacity / total demand if that is less. So the device counts one number, the
    seconds of ``progress`` of any work since the start, and work that begins at progress p ends at p + its seconds.

    Example: a capacity of 1; works of 3 and of 1 second, with a demand of 1 each, begin at time 0. The rate is 1/2, so
    progress is 1 at time 2: the short one ends. The rate is 1 from then on, and progress is 3 at time 4.
    """

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self.demand = 0.0
        self.progress = 0.0
        self.updated = 0.0  # the time that ``progress`` is of
        self.num_works = 0
        self.version = 0  # changes when work begins or ends, which moves the time of the next completion
        self.works: list[tuple[float, int, float, Event]] = []  # heap of: progress at the end, number, demand, event

    @property
    def rate(self) -> float:
        """Seconds of progress in one second."""
        return min(1.0, self.capacity / self.demand)

    def begin(self, now: float, seconds: float, demand: float) -> Event:
        """Begins work that takes ``seconds`` alone. Returns the event of its end."""
        if self.works:
            self.progress += (now - self.updated) * self.rate
        self.updated = now
        self.demand += demand
        self.num_works += 1
        self.version += 1
        ended = Event()
        heapq.heappush(self.works, (self.progress + seconds, self.num_works, demand, ended))
        return ended

    def next_completion(self) -> float:
        """The time at which the next work ends if no other begins."""
        return self.updated + (self.works[0][0] - self.progress) / self.rate

    def complete(self, now: float) -> list[Event]:
        """Ends the next work, and all work that ends with it. Returns their events."""
        self.progress, self.updated = self.works[0][0], now
        self.version += 1
        ended = []
        while self.works and self.works[0][0] <= self.progress + 1e-9:
            _, _, demand, event = heapq.heappop(self.works)
            self.demand -= demand
            ended.append(event)
        return ended


class Environment:
    """The clock, and the devices by name. ``capacity`` is 1 for a device that it does not name."""

    def __init__(self, capacity: Mapping[str, float]) -> None:
        self.now = 0.0
        self.capacity = capacity
        self.devices: dict[str, Device] = {}
        self.calendar: list[tuple[float, int, int, Device]] = []  # heap of: time, number, version, device
        self.num_entries = 0

    def work(self, device: str, seconds: float, demand: float = 1.0) -> Event:
        """Begins work on a device: ``seconds`` if it is alone, with ``demand`` of the capacity."""
        if seconds <= 0:
            ended = Event()
            ended.trigger()
            return ended
        resource = self.devices.setdefault(device, Device(self.capacity.get(device, 1.0)))
        ended = resource.begin(self.now, seconds, demand)
        self._schedule(resource)
        return ended

    def run(self) -> float:
        """Runs until nothing is left to happen; returns the time."""
        while self.calendar:
            time, _, version, device = heapq.heappop(self.calendar)
            if version != device.version:  # work began or ended since this entry was made
                continue
            self.now = time
            ended = device.complete(time)
            if device.works:
                self._schedule(device)
            for event in ended:
                event.trigger()
        return self.now

    def _schedule(self, device: Device) -> None:
        """Enters a device's next completion into the calendar."""
        self.num_entries += 1
        heapq.heappush(self.calendar, (device.next_completion(), self.num_entries, device.version, device))


@dataclass(frozen=True, kw_only=True)
class StepWork:
    """The work of RL steps in seconds, each piece as it takes alone.

    ``generate[step][chunk]`` is drawn for each step. The others are the same in all steps: ``score`` computes the
    rewards of one chunk and ``score_wait`` waits for a service; ``annotate``, ``learn`` and ``sync`` are of the whole
    step.
    """

    generate: Sequence[Sequence[float]]
    score: float = 0.0
    score_wait: float = 0.0
    annotate: float = 0.0
    learn: float = 0.0
    sync: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The device of each rollout worker, reward worker and learner rank.

    ``demand`` is what one worker takes of its device's capacity while it computes: threads of a CPU, or 1 GPU.
    """

    rollout: Sequence[str]
    reward: Sequence[str]
    learner: Sequence[str]
    demand: float
    capacity: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class SimulatedStep:
    """Seconds of each stage as metrics.jsonl names them (time/...), and the policy version that generated the rollouts."""

    seconds: Mapping[str, float]
    policy_version: int


def simulate_steps(work: StepWork, layout: Layout, ahead: int) -> list[SimulatedStep]:
    """The steps of the loop of train/rl.py, with rollouts generated up to ``ahead`` steps ahead."""
    loop = _Loop(work, layout, ahead)
    Process(loop.run())
    loop.env.run()
    return loop.steps


class _Loop:
    """The processes of a run. `run` repeats RL.loop, and tests/integration/test_simulate.py compares the two."""

    def __init__(self, work: StepWork, layout: Layout, ahead: int) -> None:
        self.work, self.layout, self.ahead = work, layout, ahead
        self.env = Environment(layout.capacity)
        self.num_steps = len(work.generate)
        self.version = 0  # of the policy that rollout workers hold
        self.generated: dict[int, Process] = {}
        self.generated_with: dict[int, int] = {}
        self.scored: dict[int, list[Event]] = {}
        self.last_generated: Process | None = None
        self.num_scored = [0] * len(layout.reward)
        self.steps: list[SimulatedStep] = []

    def run(self) -> ProcessGenerator:
        env, work = self.env, self.work
        for step in range(self.num_steps):
            laps = [("", env.now)]
            for later in range(step, min(step + self.ahead, self.num_steps - 1) + 1):
                self._launch(later)
            yield self.generated[step]
            yield self.scored[step]
            laps.append(("rollout", env.now))
            yield self._on_learners(work.annotate)
            laps.append(("annotate", env.now))
            yield self._on_learners(work.learn)
            laps.append(("learn", env.now))
            yield list(self.generated.values())
            laps.append(("wait", env.now))
            yield self._on_learners(work.sync)
            self.version += 1
            laps.append(("sync", env.now))
            seconds = {name: end - begin for (_, begin), (name, end) in pairwise(laps)}
            seconds["step"] = env.now - laps[0][1]
            self.steps.append(SimulatedStep(seconds=seconds, policy_version=self.generated_with[step]))
            del self.generated[step], self.scored[step]

    def _on_learners(self, seconds: float) -> list[Event]:
        return [self.env.work(device, seconds, self.layout.demand) for device in self.layout.learner]

    def _launch(self, step: int) -> None:
        """Generates a step's rollouts after those of the step before, as train/rollout_queue.py does in its thread."""
        if step not in self.generated:
            self.scored[step] = []
            self.generated[step] = self.last_generated = Process(self._generate(step, self.last_generated))

    def _generate(self, step: int, previous: Process | None) -> ProcessGenerator:
        if previous is not None:
            yield previous
        self.generated_with[step] = self.version
        chunks = deque(self.work.generate[step])
        yield [Process(self._rollout_worker(step, chunks, device)) for device in self.layout.rollout]

    def _rollout_worker(self, step: int, chunks: deque[float], device: str) -> ProcessGenerator:
        """Takes chunks until there are none, and hands each to the reward worker that has had the fewest."""
        while chunks:
            yield self.env.work(device, chunks.popleft(), self.layout.demand)
            index = min(range(len(self.num_scored)), key=lambda i: self.num_scored[i])
            self.num_scored[index] += 1
            self.scored[step].append(Process(self._score(index)))

    def _score(self, index: int) -> ProcessGenerator:
        yield self.env.work(self.layout.reward[index], self.work.score, self.layout.demand)
        yield self.env.work(f"service of reward worker {index}", self.work.score_wait)
