"""Tensors asleep on the host: whoever holds them reads the same values again."""

import torch

from rlhf_ray.models.offload import HostOffload


def test_views_ties_and_an_optimizer_go_on_after_a_sleep():
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 8)
    model.tied = model.weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    offload = HostOffload(
        lambda: [*model.parameters(), *(v for state in optimizer.state.values() for v in state.values())]
    )

    def step():
        optimizer.zero_grad()
        model(torch.ones(2, 8)).square().sum().backward()
        optimizer.step()

    step()
    view, values = model.weight.data[2:], model.weight.data[2:].clone()
    num_bytes = 3 * 4 * (64 + 8) + 2 * 4  # weights, two moments, and a step count of each parameter
    assert offload.sleep() == num_bytes
    assert model.weight.untyped_storage().nbytes() == 0
    assert offload.sleep() == 0  # it sleeps already
    assert offload.wake() == num_bytes
    assert offload.wake() == 0
    assert torch.equal(view, values)
    undisturbed = [p.detach().clone() for p in model.parameters()]
    step()
    assert not torch.equal(model.weight, undisturbed[0])
    assert view.data_ptr() == model.tied.data[2:].data_ptr()


def test_scratch_is_freed_without_a_copy():
    kept, scratch = torch.ones(100), torch.ones(1000)
    offload = HostOffload(lambda: [kept, scratch], scratch=lambda: [scratch[:10]])
    assert offload.sleep() == 4400
    assert scratch.untyped_storage().nbytes() == 0
    assert sum(len(buffer) for buffer in offload._buffers.values()) == 400
    offload.wake()
    assert torch.equal(kept, torch.ones(100))
    assert scratch.untyped_storage().nbytes() == 4000
