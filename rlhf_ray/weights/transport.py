"""How the messages of a weight sync travel from the learner to rollout workers: Ray's object store.

Messages, fingerprints, the probe and versions do not depend on the transport, and the loop knows only
:class:`WeightTransport`. Another transport, say NCCL from device to device, would have to provide:

- A communicator of learner rank 0 and all rollout workers, which is built again whenever a worker is replaced.
- ``send``: Begin, WeightManifest and ProbeAnswer as here; a Bucket with names, dtypes and shapes only, whose bytes rank
  0 broadcasts from device memory while the workers receive them. A worker that dies then must not leave the others in
  the collective.
- Fingerprints of tensors in device memory. Otherwise every check copies the tensors to the host.
- ``resend``: no store has a copy, so rank 0 must send its present weights to that worker. They are those of the last
  sync only if no update has begun since.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import ray

from .messages import SyncResult


class WeightTransport(Protocol):
    """Carries syncs to workers.

    A worker is an actor with a method ``receive(message)``, which replies to the last message with a SyncResult.
    """

    def send(self, messages: Iterable[Any], workers: Sequence[Any]) -> None:
        """Starts a sync: hands each message to all ``workers`` as soon as it is made."""
        ...

    def receive(self, worker: Any) -> SyncResult:
        """A worker's result of the last sync, once the worker has it.

        Raises StaleWeights, or Ray's error of a dead actor.
        """
        ...

    def resend(self, worker: Any) -> None:
        """Gives the last sync to a worker that was restarted or is stale, if there was one.

        Raises as :meth:`receive` does.
        """
        ...


class ObjectStoreTransport:
    """Messages are references to objects in Ray's store, owned by this process: they outlive the rank that made them.

    The messages of the last complete sync are kept until the next one is complete. ``deadline_s`` limits each wait for
    a worker.
    """

    def __init__(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self.messages: list[Any] = []
        self.replies: dict[Any, list[Any]] = {}  # of each worker, to each message

    def send(self, messages: Iterable[Any], workers: Sequence[Any]) -> None:
        """See :meth:`WeightTransport.send`; ``messages`` are references."""
        sent: list[Any] = []
        replies: dict[Any, list[Any]] = {worker: [] for worker in workers}
        for message in messages:
            sent.append(message)
            for worker in workers:
                replies[worker].append(worker.receive.remote(message))
        self.messages, self.replies = sent, replies

    def receive(self, worker: Any) -> SyncResult:
        """See :meth:`WeightTransport.receive`. Raises GetTimeoutError after ``deadline_s``."""
        results = [ray.get(reply, timeout=self.deadline_s) for reply in self.replies[worker]]  # each has the whole time
        result: SyncResult = results[-1]
        return result

    def resend(self, worker: Any) -> None:
        """See :meth:`WeightTransport.resend`."""
        if self.messages:
            self.replies[worker] = [worker.receive.remote(message) for message in self.messages]
            self.receive(worker)
