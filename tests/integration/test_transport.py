"""The object-store transport over real actors: order, what is made when, deaths, and workers that start later."""

import numpy as np
import pytest
import ray
from ray.exceptions import RayActorError

from rlhf_ray.weights.manifest import StaleWeights
from rlhf_ray.weights.messages import Begin, Bucket, ProbeAnswer, SyncResult, WeightManifest
from rlhf_ray.weights.transport import ObjectStoreTransport
from tests.helpers import end_actor

pytestmark = pytest.mark.integration


class Receiver:
    """Writes down the messages it gets, and refuses a version that it is told to."""

    def __init__(self, refused=None):
        self.refused, self.messages = refused, []

    def receive(self, message):
        self.messages.append(message)
        if isinstance(message, ProbeAnswer):
            if message.version == self.refused:
                raise StaleWeights(f"version {message.version}")
            return SyncResult(probe_difference=float(message.version), verify_s=0.0, num_bytes=8)
        return None

    def read_messages(self):
        return self.messages


class Sender:
    """Makes the messages of a sync with two buckets."""

    def sync_weights(self, version):
        yield Begin(version)
        yield Bucket({"a": ("float32", (1,), np.full(4, version, np.uint8))})
        yield Bucket({"b": ("float32", (1,), np.full(4, version, np.uint8))})
        yield WeightManifest(
            version=version,
            fingerprints=("a", "b"),
            probe=np.array([1]),
            second_probe=np.array([1]),
            tolerance=0.0,
            num_bytes=8,
        )
        yield ProbeAnswer(version, np.zeros(1), np.zeros(1))


KINDS = [Begin, Bucket, Bucket, WeightManifest, ProbeAnswer]


def received(worker):
    """(kind, version) of the messages that a worker has got; a bucket's version is its content."""
    messages = ray.get(worker.read_messages.remote())
    return [
        (type(m), int(next(iter(m.tensors.values()))[2][0]) if isinstance(m, Bucket) else m.version) for m in messages
    ]


def test_every_worker_gets_all_messages_in_their_order(start_group):
    learner, workers, transport = (
        start_group("learner", Sender, 1),
        start_group("rollout", Receiver, 2),
        ObjectStoreTransport(60.0),
    )
    for version in (1, 2):
        transport.send(learner.stream("sync_weights", version), workers.actors)
        results = [transport.receive(worker) for worker in workers.actors]
        assert [result.probe_difference for result in results] == [version, version]
    for worker in workers.actors:
        assert received(worker) == [(kind, version) for version in (1, 2) for kind in KINDS]


def test_a_message_is_handed_on_before_the_next_one_is_made(start_group):
    workers, transport = start_group("rollout", Receiver, 1), ObjectStoreTransport(60.0)
    counts = []

    def messages():
        for kind in (Begin, ProbeAnswer):
            counts.append(len(received(workers.actors[0])))
            yield ray.put(Begin(1) if kind is Begin else ProbeAnswer(1, np.zeros(1), np.zeros(1)))

    transport.send(messages(), workers.actors)
    assert counts == [0, 1]


def test_a_replaced_worker_gets_the_last_sync_though_its_maker_is_dead(start_group):
    learner, workers, transport = (
        start_group("learner", Sender, 1),
        start_group("rollout", Receiver, 2),
        ObjectStoreTransport(60.0),
    )
    workers.on_start = transport.resend
    for version in (1, 2):
        transport.send(learner.stream("sync_weights", version), workers.actors)
        for worker in workers.actors:
            transport.receive(worker)
    learner.kill()
    dead = workers.actors[0]
    end_actor(dead)
    workers.replace(0, dead)
    assert received(workers.actors[0]) == [(kind, 2) for kind in KINDS]
    assert transport.receive(workers.actors[0]).probe_difference == 2
    assert len(received(workers.actors[1])) == 2 * len(KINDS)


def test_a_worker_that_dies_in_a_sync_is_an_error_of_its_own(start_group):
    learner, workers, transport = (
        start_group("learner", Sender, 1),
        start_group("rollout", Receiver, 2),
        ObjectStoreTransport(60.0),
    )
    end_actor(workers.actors[0])
    transport.send(learner.stream("sync_weights", 1), workers.actors)
    with pytest.raises(RayActorError):
        transport.receive(workers.actors[0])
    assert transport.receive(workers.actors[1]).num_bytes == 8


def test_a_refused_sync_raises_what_the_worker_raised(start_group):
    learner, workers, transport = (
        start_group("learner", Sender, 1),
        start_group("rollout", Receiver, 1, refused=1),
        ObjectStoreTransport(60.0),
    )
    transport.send(learner.stream("sync_weights", 1), workers.actors)
    with pytest.raises(StaleWeights, match="version 1"):
        transport.receive(workers.actors[0])


def test_before_the_first_sync_there_is_nothing_to_send_again(start_group):
    workers, transport = start_group("rollout", Receiver, 1), ObjectStoreTransport(60.0)
    transport.resend(workers.actors[0])
    assert received(workers.actors[0]) == []
