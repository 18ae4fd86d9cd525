"""Experience: prompts to scored rollouts, over any number of rollout and reward workers, any of which may die.

Chunks go to idle rollout workers; what a chunk yields goes to reward workers at once. A worker that dies is replaced,
caught up, and its chunk or piece is done again whole; rows are merged by (example_id, sample), so nothing is dropped and
nothing comes twice, and the result depends on the step alone.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayTaskError

from ..actors.group import DEAD, StageTimeout, WorkerGroup, unwrap
from ..batch import Batch, cat
from ..data.prompts import Prompts
from ..rollout.chunk import Chunk
from ..weights.manifest import StaleWeights


@dataclass(frozen=True)
class Order:
    """What to generate: which prompts (indices into Prompts), how many samples of each, from which version.

    ``visits`` counts how often this step has visited a prompt in orders before this one.
    """

    step: int
    version: int
    chosen: Sequence[int]
    first_group: int
    samples: int
    greedy_extra: bool = False
    greedy: bool = False
    terms: tuple[str, ...] | None = None
    visits: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Scoring:
    """A piece of a chunk at a reward worker."""

    actor: Any
    worker: int
    chunk: int
    piece: Batch


def chunks(order: Order, prompts: Prompts, size: int, run_seed: int) -> list[Chunk]:
    """The order cut into chunks of ``size`` prompts; a prompt visited twice in a step gets other sample numbers."""
    visits = dict(order.visits)
    per = order.samples + order.greedy_extra
    found = []
    for start in range(0, len(order.chosen), size):
        part = list(order.chosen[start : start + size])
        first = []
        for index in part:
            first.append(visits.get(index, 0) * per)
            visits[index] = visits.get(index, 0) + 1
        group = list(range(order.first_group + start, order.first_group + start + len(part)))
        ids = prompts.example_id[part].tolist()
        tokens = [prompts.tokens[i] for i in part]
        found.append(
            Chunk(order.step, run_seed, tokens, ids, group, first, order.samples, order.greedy_extra, order.greedy)
        )
    return found


class Collector:
    """Runs Orders on the two groups: one at a time is generated, while those before it may still be scored."""

    def __init__(
        self, rollout: WorkerGroup, reward: WorkerGroup, chunk_prompts: int, run_seed: int, deadline_s: float
    ) -> None:
        self.rollout, self.reward = rollout, reward
        self.chunk_prompts, self.run_seed, self.deadline_s = chunk_prompts, run_seed, deadline_s
        self.load = [0] * len(reward)  # pieces at each reward worker, of all orders
        self.lock = threading.Lock()  # an order may be generated in one thread while another is scored in the main one

    def forget(self) -> None:
        """Counts no pieces of orders whose scores nobody will wait for."""
        with self.lock:
            self.load = [0] * len(self.load)

    def take_reward_worker(self) -> int:
        """The reward worker with the fewest pieces, which has one more now."""
        with self.lock:
            worker = min(range(len(self.load)), key=self.load.__getitem__)
            self.load[worker] += 1
        return worker

    def release_reward_worker(self, worker: int) -> None:
        """A piece fewer at this reward worker."""
        with self.lock:
            self.load[worker] -= 1

    def collect(self, order: Order, prompts: Prompts) -> Batch:
        """All rows of the order, scored (reward_parts), in canonical order. Raises StageTimeout, or what a worker raised."""
        return self.generate(order, prompts).scored()

    def generate(self, order: Order, prompts: Prompts) -> Collection:
        """The order, all of it generated and handed to the reward workers, but not all scored yet. Raises as collect does."""
        found = Collection(self, order, prompts)
        found.generate()
        return found

    def kill(self) -> None:
        """Ends the workers, and with them an order in flight."""
        self.rollout.kill()
        self.reward.kill()

    def take_counters(self) -> dict[str, float]:
        """Since the last call: generated tokens per second of engine time, seconds of all engines, share of their rows that were idle."""
        found = []
        for actor in self.rollout.actors:
            with contextlib.suppress(*DEAD):
                found.append(ray.get(actor.take_counters.remote(), timeout=self.deadline_s))
        tokens, seconds = sum(s["tokens"] for s in found), max((s["seconds"] for s in found), default=0.0)
        return {
            "rollout/tokens_per_second": tokens / max(seconds, 1e-9),
            "rollout/engine_seconds": sum(s["seconds"] for s in found),
            "rollout/idle_share": sum(s["idle_share"] for s in found) / max(1, len(found)),
        }


class Collection:
    """One order on its way. It needs the rollout workers until :meth:`generate` returns, and the reward workers to the end."""

    def __init__(self, collector: Collector, order: Order, prompts: Prompts) -> None:
        self.c, self.order, self.prompts = collector, order, prompts
        self.chunks = chunks(order, prompts, collector.chunk_prompts, collector.run_seed)
        self.waiting = deque(range(len(self.chunks)))
        self.idle = deque(range(len(collector.rollout)))
        self.generating: dict[Any, tuple[int, int]] = {}  # stream -> (worker, chunk)
        self.scoring: dict[Any, Scoring] = {}
        self.pieces: dict[int, list[Batch]] = {i: [] for i in range(len(self.chunks))}  # scored
        self.num_stale = 0

    def generate(self) -> None:
        """Until every chunk is generated, and every piece of it is scored or on its way to be."""
        self.until = time.monotonic() + self.c.deadline_s
        while self.waiting or self.generating:
            while self.waiting and self.idle:
                self._generate(self.idle.popleft(), self.waiting.popleft())
            self._advance()

    def scored(self) -> Batch:
        """All rows with their reward_parts, in canonical order, once the last is scored."""
        self.until = time.monotonic() + self.c.deadline_s
        while self.scoring:
            self._advance()
        return cat(part for i in range(len(self.chunks)) for part in self.pieces[i]).sorted()

    def _advance(self) -> None:
        """Waits for one piece or one score, and takes it and all others that are there."""
        pending = [*self.generating, *self.scoring]
        if not ray.wait(pending, num_returns=1, timeout=max(0.0, self.until - time.monotonic()))[0]:
            self._give_up()
        for item in ray.wait(pending, num_returns=len(pending), timeout=0)[0]:
            if item in self.generating:
                self._take_piece(item)
            elif item in self.scoring:  # it is gone where its chunk or its worker was lost meanwhile
                self._take_scores(item)

    def _generate(self, worker: int, chunk: int) -> None:
        actor, what = self.c.rollout.actors[worker], self.chunks[chunk]
        piece = max(1, len(what) // 4)
        stream = actor.generate.options(num_returns="streaming").remote(self.order.version, what, piece)
        self.generating[stream] = (worker, chunk)

    def _take_piece(self, stream: Any) -> None:
        worker, chunk = self.generating[stream]
        try:
            piece = ray.get(next(stream))
        except StopIteration:
            del self.generating[stream]
            self.idle.append(worker)
        except DEAD:
            self._redo(stream, self.c.rollout.replace)
        except RayTaskError as error:
            cause = unwrap(error)
            self.num_stale += isinstance(cause, StaleWeights)
            if not isinstance(cause, StaleWeights) or self.num_stale > self.c.rollout.max_restarts:
                raise cause from None
            self._redo(stream, self.c.rollout.restore_worker)
        else:
            self._score(piece, chunk)

    def _redo(self, stream: Any, mend: Callable[[int], None]) -> None:
        """Mends the stream's worker. Its chunk is done again whole: what of it was finished is dropped."""
        worker, chunk = self.generating.pop(stream)
        mend(worker)
        self.idle.append(worker)
        self.pieces[chunk] = []
        for reference in [ref for ref, what in self.scoring.items() if what.chunk == chunk]:
            self._done(reference)
        self.waiting.appendleft(chunk)

    def _score(self, piece: Batch, chunk: int) -> None:
        worker = self.c.take_reward_worker()
        at = np.searchsorted(self.prompts.example_id, np.unique(piece.example_id))
        actor = self.c.reward.actors[worker]
        reference = actor.score.remote(piece, self.prompts.rows.take(at), self.order.terms)
        self.scoring[reference] = Scoring(actor, worker, chunk, piece)

    def _done(self, reference: Any) -> Scoring:
        what = self.scoring.pop(reference)
        self.c.release_reward_worker(what.worker)
        return what

    def _take_scores(self, reference: Any) -> None:
        actor, worker = self.scoring[reference].actor, self.scoring[reference].worker
        try:
            found = ray.get(reference)
            self.pieces[self._done(reference).chunk].append(found)
        except DEAD:
            lost = [self._done(ref) for ref, what in list(self.scoring.items()) if what.actor is actor]
            self.c.reward.replace(worker, actor)
            for what in lost:
                self._score(what.piece, what.chunk)
        except RayTaskError as error:
            raise unwrap(error) from None

    def _give_up(self) -> None:
        generating = [w for w, _ in self.generating.values()]
        scoring = [what.worker for what in self.scoring.values()]
        group, workers = (self.c.rollout, generating) if generating else (self.c.reward, scoring)
        stage = "generate" if generating else "score"
        raise StageTimeout(group.describe_hang(stage, sorted(set(workers))))
