"""Learning rates over a run, and the network interface that ranks meet at."""

import socket
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from rlhf_ray.config import LearnerConfig
from rlhf_ray.learner import zero


def rates(num_updates, steps, state=None):
    """Learning rates of an SGD optimizer under a linear schedule, and the state after it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = LambdaLR(optimizer, zero.lr_schedule(LearnerConfig(schedule="linear", warmup_steps=1), num_updates))
    if state is not None:
        optimizer.load_state_dict(state[0])
        scheduler.load_state_dict(state[1])
        fake = SimpleNamespace(lr_scheduler=scheduler, load_checkpoint=lambda *a, **k: ("here", {}))
        zero.load_shards(fake, "directory", "actor")
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found, (optimizer.state_dict(), scheduler.state_dict())


def test_a_job_that_is_made_longer_follows_the_longer_schedule():
    short, state = rates(4, 4)
    longer, _ = rates(8, 8)
    assert short == pytest.approx([0.5, 1.0, 2 / 3, 1 / 3])
    assert rates(8, 4, state)[0] == pytest.approx(longer[4:])
    assert rates(4, 1, rates(4, 2)[1])[0] == short[2:3]


def test_the_interface_of_an_address_is_the_one_that_reaches_it():
    """gloo is told this one; the host's name may resolve to 127.0.0.1."""
    assert zero.network_interface("127.0.0.1") == "lo"
    for name, found in psutil.net_if_addrs().items():
        for own in [a.address for a in found if a.family == socket.AF_INET and psutil.net_if_stats()[name].isup]:
            assert zero.network_interface(own) == name
