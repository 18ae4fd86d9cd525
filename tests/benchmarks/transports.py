"""An experiment: weights from a relay actor to rollout actors through the object store, and through Ray Direct Transport
on gloo, in turns. What it shows on one machine is why the package has the object store alone: its receivers copy nothing.
"""

import argparse

import numpy as np
import ray
import torch
from ray.experimental.collective import create_collective_group

from tests.benchmarks.paired import compare, report


class Relay:
    """Holds a model's tensors and sends them."""

    def __init__(self, count, size):
        torch.set_num_threads(1)
        self.tensors = [torch.full((size,), float(i)) for i in range(count)]

    def arrays(self):
        return [t.numpy() for t in self.tensors]

    def send(self):
        return self.tensors


class Receiver:
    """Reads a word of each tensor; ``take`` gets arrays of the store or tensors of the transport."""

    def __init__(self):
        torch.set_num_threads(1)

    def take(self, tensors):
        return float(sum(t[-1] for t in tensors))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=64, help="tensors")
    parser.add_argument("--megabytes", type=int, default=8, help="size of each")
    parser.add_argument("--receivers", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    rows, want = [], float(np.arange(args.count).sum())
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    for number in args.receivers:
        spawn = ray.remote(num_cpus=0.5, enable_tensor_transport=True)
        relay = spawn(Relay).remote(args.count, args.megabytes << 18)
        receivers = [spawn(Receiver).remote() for _ in range(number)]
        create_collective_group([relay, *receivers], backend="torch_gloo")

        def store(relay=relay, receivers=receivers):
            sent = relay.arrays.remote()
            assert ray.get([r.take.remote(sent) for r in receivers]) == [want] * len(receivers)

        def direct(relay=relay, receivers=receivers):
            sent = relay.send.options(tensor_transport="gloo").remote()
            assert ray.get([r.take.remote(sent) for r in receivers]) == [want] * len(receivers)

        found = compare(store, direct, args.rounds)
        size = args.count * args.megabytes / 1024
        rows.append({"case": f"{size:.2f} GiB to {number}: object store, gloo", "bytes": size * 2**30, **found})
        for actor in (relay, *receivers):
            ray.kill(actor)
    report("transports: the object store (ours) against Ray Direct Transport on gloo (theirs)", rows)


if __name__ == "__main__":
    main()
