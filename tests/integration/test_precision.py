"""Gradients, skipped steps and optimizers of real DeepSpeed engines on gloo, at each ZeRO stage."""

import socket

import pytest
import ray
import torch
from torch import nn

from rlhf_ray.config import LearnerConfig
from rlhf_ray.learner import zero

pytestmark = pytest.mark.integration
WORLD = 2


@ray.remote(num_cpus=0.5)
class Rank:
    """One rank, which builds an engine for each question."""

    def free_port(self):
        with socket.socket() as listener:
            listener.bind(("", 0))
            return listener.getsockname()[1]

    def join(self, rank, port):
        torch.set_num_threads(1)
        self.rank, device = rank, torch.device("cpu")
        zero.join_ranks(rank=rank, world_size=WORLD, address="127.0.0.1", port=port, device=device, timeout_s=120)

    def engine(self, config, dtype):
        """An engine around two linear layers and a norm, the same on all ranks."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 16)).to(dtype)
        settings = zero.deepspeed_config(config, dtype)
        return zero.make_engine(model, config, settings, config.lr, 10)

    def norms(self, config, dtype, counts):
        """The gradient norm of as many equal micro-batches as each count says, each sum divided by its count."""
        engine, norms = self.engine(config, dtype), []
        inputs = torch.linspace(-1, 1, 64).view(4, 16).to(dtype)
        for count in counts:
            for _ in range(count):
                zero.backward(engine, engine(inputs).float().square().sum(), 4.0 * count)
            norms.append(zero.optimizer_step(engine))
        return norms

    def skips(self, config, dtype):
        """Whether weights change in a step with an infinite gradient on one rank, and in the step after it."""
        engine, changes = self.engine(config, dtype), []
        for factor in (float("inf") if self.rank else 1.0, 1.0):
            before = self.weights(engine)
            inputs = torch.ones(1, 16, dtype=dtype)
            zero.backward(engine, engine(inputs).float().sum() * factor, 1.0)
            norm = zero.optimizer_step(engine)
            changes.append((norm, bool((self.weights(engine) != before).any())))
        return changes, bool(self.weights(engine).isfinite().all())

    def train(self, config, dtype):
        """The weights after four steps, and the loss before each."""
        engine, losses = self.engine(config, dtype), []
        draw = torch.Generator().manual_seed(self.rank)
        for _ in range(4):
            inputs = torch.randn(4, 16, generator=draw).to(dtype)
            loss = (engine(inputs).float() - 1.0).square().mean()
            losses.append(float(loss.detach()))
            zero.backward(engine, loss, float(WORLD))
            zero.optimizer_step(engine)
        return self.weights(engine), losses

    def first_update(self, config, rows, columns):
        """Root mean square of what the first step changes in a matrix, over the learning rate."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(columns, rows, bias=False))
        engine = zero.make_engine(model, config, zero.deepspeed_config(config, torch.float32), config.lr, 10)
        before = self.weights(engine)
        zero.backward(engine, engine(torch.randn(128, columns)).square().sum(), 1.0)
        zero.optimizer_step(engine)
        return float((self.weights(engine) - before).square().mean().sqrt()) / config.lr

    def weights(self, engine):
        parameters = [*engine.module.parameters()]
        with zero.gathered(parameters):
            return torch.cat([p.detach().float().flatten() for p in parameters])


@pytest.fixture(scope="module")
def ranks():
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    ranks = [Rank.remote() for _ in range(WORLD)]
    port = ray.get(ranks[0].free_port.remote())
    ray.get([r.join.remote(i, port) for i, r in enumerate(ranks)])
    yield ranks
    ray.shutdown()


def call(ranks, method, *args):
    return ray.get([getattr(r, method).remote(*args) for r in ranks], timeout=120)


def config(stage, **options):
    return LearnerConfig(zero_stage=stage, num_workers=WORLD, **{"optimizer": "sgd", "lr": 1e-3, **options})


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_thousand_equal_micro_batches_have_the_gradient_of_one(ranks, stage):
    """In bfloat16 the sum would stop growing at 256 addends."""
    for one, thousand in call(ranks, "norms", config(stage, lr=1e-30), torch.bfloat16, [1, 1000]):
        assert thousand == pytest.approx(one, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_step_with_an_infinite_gradient_is_skipped_on_all_ranks(ranks, stage, dtype):
    for ((norm, changed), (next_norm, next_changed)), finite in call(ranks, "skips", config(stage, lr=0.1), dtype):
        assert norm is None
        assert not changed
        assert next_norm is not None
        assert next_norm > 0
        assert next_changed
        assert finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_muon_learns_the_same_at_each_stage(ranks, stage, dtype):
    """The loss falls, all ranks have the same weights, and they are those of ZeRO-1."""
    lr = 0.05
    chosen = config(stage, optimizer="muon", lr=lr)
    (weights, losses), (others, _) = call(ranks, "train", chosen, dtype)
    assert torch.equal(weights, others)
    assert losses[-1] < 0.97 * losses[0]
    reference, _ = call(ranks, "train", config(1, optimizer="muon", lr=lr), dtype)[0]
    assert (weights - reference).abs().max() < (1e-4 if dtype == torch.float32 else 2e-2)


def test_muon_moves_a_matrix_as_far_as_adamw_does(ranks):
    """Root mean squares of one update, of a wide and a tall matrix, over the learning rate."""
    for rows, columns in ((16, 64), (64, 16)):
        moved = call(ranks, "first_update", config(1, optimizer="muon", lr=1e-2), rows, columns)[0]
        assert moved == pytest.approx(0.2, rel=0.25)
