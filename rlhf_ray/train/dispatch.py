"""Dispatcher: prompts to scored rollouts, over rollout and reward workers that may die.

Idle rollout workers get chunks of prompts. What a chunk yields (a piece) goes to a reward worker at once. A worker that
dies is replaced and restored, and its chunk or piece is computed again as a whole. Rows are merged by (example_id,
sample), so no row is lost or doubled, and the result depends on the step alone.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayTaskError

from ..actors.errors import DEAD, StageTimeout, unwrap
from ..actors.group import WorkerGroup
from ..batch import Batch, cat
from ..data.prompts import Prompts
from ..rollout.chunk import Chunk
from ..weights.manifest import StaleWeights

PIECES_PER_CHUNK = 4


@dataclass(frozen=True, kw_only=True)
class RolloutRequest:
    """What to generate: ``samples`` responses to each of ``prompts`` (indices into Prompts) by a weight ``version``.

    The prompts get the group numbers from ``first_group`` on. ``greedy_extra`` adds one greedy response to each prompt;
    with ``greedy`` all are greedy. ``terms`` are the names of the reward terms that score them; None means all terms.
    ``visits`` is how often earlier requests of this step have asked for a prompt.
    """

    step: int
    version: int
    prompts: Sequence[int]
    first_group: int
    samples: int
    greedy_extra: bool = False
    greedy: bool = False
    terms: tuple[str, ...] | None = None
    visits: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ScoringCall:
    """A piece of a chunk at a reward worker.

    ``reference`` is the piece in Ray's object store. The driver's copy of it, ``piece``, keeps it there if the node of
    the rollout worker is lost.
    """

    actor: Any
    worker: int
    chunk: int
    piece: Batch
    reference: Any


def cut_into_chunks(request: RolloutRequest, prompts: Prompts, chunk_prompts: int, run_seed: int) -> list[Chunk]:
    """The request in chunks of ``chunk_prompts`` prompts.

    A prompt that a step visits again gets the next sample numbers. Example: with two samples a prompt, the first visit
    has the samples 0 and 1, the second visit 2 and 3.
    """
    visits = dict(request.visits)
    samples_per_visit = request.samples + request.greedy_extra
    chunks = []
    for start in range(0, len(request.prompts), chunk_prompts):
        indices = list(request.prompts[start : start + chunk_prompts])
        first_samples = []
        for index in indices:
            first_samples.append(visits.get(index, 0) * samples_per_visit)
            visits[index] = visits.get(index, 0) + 1
        first_group = request.first_group + start
        chunks.append(
            Chunk(
                step=request.step,
                run_seed=run_seed,
                prompts=[prompts.tokens[i] for i in indices],
                example_id=prompts.example_id[indices].tolist(),
                group=list(range(first_group, first_group + len(indices))),
                first_sample=first_samples,
                samples=request.samples,
                greedy_extra=request.greedy_extra,
                greedy=request.greedy,
            )
        )
    return chunks


class Dispatcher:
    """Sends requests to the two groups. One request is generated at a time, while earlier ones may still be scored.

    ``load`` counts the pieces at each reward worker, of all requests. A lock guards it, because one thread may generate
    a request while the main thread waits for the scores of another.
    """

    def __init__(
        self, *, rollout: WorkerGroup, reward: WorkerGroup, chunk_prompts: int, run_seed: int, deadline_s: float
    ) -> None:
        self.rollout, self.reward = rollout, reward
        self.chunk_prompts, self.run_seed, self.deadline_s = chunk_prompts, run_seed, deadline_s
        self.load = [0] * len(reward)
        self.lock = threading.Lock()

    def reset_load(self) -> None:
        """Sets the load to zero, when nobody will wait for the scores of earlier requests."""
        with self.lock:
            self.load = [0] * len(self.load)

    def take_reward_worker(self) -> int:
        """The index of the reward worker with the fewest pieces; one more is counted for it."""
        with self.lock:
            worker = min(range(len(self.load)), key=self.load.__getitem__)
            self.load[worker] += 1
        return worker

    def release_reward_worker(self, worker: int) -> None:
        """Counts one piece less for this reward worker."""
        with self.lock:
            self.load[worker] -= 1

    def collect(self, request: RolloutRequest, prompts: Prompts) -> Batch:
        """All rows of the request with their reward_parts, in canonical order.

        Raises StageTimeout, or what a worker raised.
        """
        return self.generate(request, prompts).scored()

    def generate(self, request: RolloutRequest, prompts: Prompts) -> PendingRollouts:
        """Generates the whole request and hands it to the reward workers; does not wait for all scores.

        Raises as :meth:`collect` does.
        """
        pending = PendingRollouts(self, request, prompts)
        pending.generate()
        return pending

    def kill(self) -> None:
        """Ends the workers, and with them a request that is in flight."""
        self.rollout.kill()
        self.reward.kill()

    def take_counters(self) -> dict[str, float]:
        """Metrics of the engines since the last call.

        Tokens generated in each second of the busiest engine, seconds of all engines, and the idle share of their rows.
        A dead engine has none. Raises StageTimeout.
        """
        calls = [actor.take_counters.remote() for actor in self.rollout.actors]
        late = ray.wait(calls, num_returns=len(calls), timeout=self.deadline_s)[1]
        if late:
            raise StageTimeout(self.rollout.describe_hang("take_counters", [calls.index(call) for call in late]))
        counters = []
        for call in calls:
            with contextlib.suppress(*DEAD):
                counters.append(ray.get(call))
        tokens = sum(engine["tokens"] for engine in counters)
        busiest_s = max((engine["seconds"] for engine in counters), default=0.0)
        return {
            "rollout/tokens_per_second": tokens / max(busiest_s, 1e-9),
            "rollout/engine_seconds": sum(engine["seconds"] for engine in counters),
            "rollout/idle_share": sum(engine["idle_share"] for engine in counters) / max(1, len(counters)),
        }


class PendingRollouts:
    """One request that is being generated or scored.

    It needs the rollout workers until :meth:`generate` returns, and the reward workers until :meth:`scored` does.
    """

    def __init__(self, dispatcher: Dispatcher, request: RolloutRequest, prompts: Prompts) -> None:
        self.dispatcher, self.request, self.prompts = dispatcher, request, prompts
        self.chunks = cut_into_chunks(request, prompts, dispatcher.chunk_prompts, dispatcher.run_seed)
        self.waiting_chunks = deque(range(len(self.chunks)))
        self.idle_workers = deque(range(len(dispatcher.rollout)))
        self.generating: dict[Any, tuple[int, int]] = {}  # stream -> (worker, chunk)
        self.scoring: dict[Any, ScoringCall] = {}  # reference to the scores -> call
        self.scored_pieces: dict[int, list[Batch]] = {chunk: [] for chunk in range(len(self.chunks))}
        self.num_stale = 0

    def generate(self) -> None:
        """Returns when every chunk is generated, and every piece is scored or at a reward worker."""
        while self.waiting_chunks or self.generating:
            while self.waiting_chunks and self.idle_workers:
                self._start_chunk(self.idle_workers.popleft(), self.waiting_chunks.popleft())
            self._take_results()

    def scored(self) -> Batch:
        """Waits for the last score; returns all rows with their reward_parts, in canonical order."""
        while self.scoring:
            self._take_results()
        return cat(piece for chunk in range(len(self.chunks)) for piece in self.scored_pieces[chunk]).sorted()

    def _take_results(self) -> None:
        """Waits up to ``deadline_s`` for one piece or one score; takes it and all others that are ready."""
        pending = [*self.generating, *self.scoring]
        if not ray.wait(pending, num_returns=1, timeout=self.dispatcher.deadline_s)[0]:
            self._raise_timeout()
        for reference in ray.wait(pending, num_returns=len(pending), timeout=0)[0]:
            if reference in self.generating:
                self._take_piece(reference)
            elif reference in self.scoring:  # it is gone if its chunk or its worker was lost in the meantime
                self._take_scores(reference)

    def _start_chunk(self, worker: int, chunk_index: int) -> None:
        actor, chunk = self.dispatcher.rollout.actors[worker], self.chunks[chunk_index]
        piece_rows = max(1, len(chunk) // PIECES_PER_CHUNK)
        stream = actor.generate.options(num_returns="streaming").remote(self.request.version, chunk, piece_rows)
        self.generating[stream] = (worker, chunk_index)

    def _take_piece(self, stream: Any) -> None:
        worker, chunk = self.generating[stream]
        rollout = self.dispatcher.rollout
        try:
            reference = next(stream)
            piece = ray.get(reference)
        except StopIteration:
            del self.generating[stream]
            self.idle_workers.append(worker)
        except DEAD:
            self._generate_again(stream, rollout.replace)
        except RayTaskError as error:
            cause = unwrap(error)
            self.num_stale += isinstance(cause, StaleWeights)
            if not isinstance(cause, StaleWeights) or self.num_stale > rollout.max_restarts:
                raise cause from None
            self._generate_again(stream, rollout.restore_worker)
        else:
            self._start_scoring(piece, reference, chunk)

    def _generate_again(self, stream: Any, repair: Callable[[int], None]) -> None:
        """Repairs the stream's worker and puts its whole chunk back; pieces of it that are ready are dropped."""
        worker, chunk = self.generating.pop(stream)
        repair(worker)
        self.idle_workers.append(worker)
        self.scored_pieces[chunk] = []
        for reference in [reference for reference, call in self.scoring.items() if call.chunk == chunk]:
            self._end_call(reference)
        self.waiting_chunks.appendleft(chunk)

    def _start_scoring(self, piece: Batch, reference: Any, chunk: int) -> None:
        """Sends a piece to a reward worker: its reference, so that it goes there from the object store directly."""
        worker = self.dispatcher.take_reward_worker()
        actor = self.dispatcher.reward.actors[worker]
        rows = np.searchsorted(self.prompts.example_id, np.unique(piece.example_id))
        scores = actor.score.remote(reference, self.prompts.rows.take(rows), self.request.terms)
        self.scoring[scores] = ScoringCall(actor=actor, worker=worker, chunk=chunk, piece=piece, reference=reference)

    def _end_call(self, reference: Any) -> ScoringCall:
        call = self.scoring.pop(reference)
        self.dispatcher.release_reward_worker(call.worker)
        return call

    def _take_scores(self, reference: Any) -> None:
        actor, worker = self.scoring[reference].actor, self.scoring[reference].worker
        try:
            columns = ray.get(reference)
            call = self._end_call(reference)
            self.scored_pieces[call.chunk].append(call.piece.replace(**columns))
        except DEAD:
            lost = [self._end_call(other) for other, call in list(self.scoring.items()) if call.actor is actor]
            self.dispatcher.reward.replace(worker, actor)
            for call in lost:
                self._start_scoring(call.piece, call.reference, call.chunk)
        except RayTaskError as error:
            raise unwrap(error) from None

    def _raise_timeout(self) -> None:
        generating = [worker for worker, _ in self.generating.values()]
        scoring = [call.worker for call in self.scoring.values()]
        if generating:
            raise StageTimeout(self.dispatcher.rollout.describe_hang("generate", sorted(set(generating))))
        raise StageTimeout(self.dispatcher.reward.describe_hang("score", sorted(set(scoring))))
