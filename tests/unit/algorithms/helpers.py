"""Ragged batches and naive losses that the tests of losses compare with."""

import math
from dataclasses import dataclass

import torch

SEEDS = range(5)
OVER = ("tokens", "sequences", "max_tokens")


@dataclass
class Case:
    """A random ragged batch; outside the response the floats are rubbish that must not matter."""

    lengths: torch.Tensor
    mask: torch.Tensor
    new: torch.Tensor
    old: torch.Tensor
    rollout: torch.Tensor
    advantages: torch.Tensor

    def sampled(self):
        start = 0
        for length in self.lengths.tolist():
            yield [i for i in range(start, start + length) if self.mask[i]]
            start += length

    def positions(self):
        return [i for row in self.sampled() for i in row]


def case(seed: int, rows: int = 9, spread: float = 0.4) -> Case:
    generator = torch.Generator().manual_seed(seed)
    masks, lengths = [], []
    for row in range(rows):
        prompt, response = (int(x) for x in torch.randint(0, 7, (2,), generator=generator))
        part = torch.randint(0, 4, (response + 1,), generator=generator) > 0
        if row == 3:
            part = part & False
        masks.append(torch.cat([torch.zeros(prompt, dtype=torch.bool), part]))
        lengths.append(prompt + response + 1)
    mask = torch.cat(masks)

    def floats(scale):
        return torch.randn(len(mask), generator=generator, dtype=torch.float64) * scale

    old = -floats(1.0).abs()
    new, rollout = old + floats(spread), old + floats(spread)
    rubbish = torch.tensor([float("nan"), float("inf"), float("-inf"), 1e4], dtype=torch.float64)
    rubbish = rubbish[torch.randint(0, 4, (len(mask),), generator=generator)]
    tensors = [torch.where(mask, x, rubbish) for x in (new, old, rollout, floats(1.0))]
    return Case(torch.tensor(lengths), mask.to(torch.uint8), *tensors)


def leaf(x: torch.Tensor) -> torch.Tensor:
    return x.clone().requires_grad_()


def clip(x, low, high):
    return min(max(x, low), high)


def surrogate_loss(ratio, advantage, low, high, dual=None):
    objective = min(ratio * advantage, clip(ratio, 1 - low, 1 + high) * advantage)
    if dual is not None and advantage < 0:
        objective = max(objective, dual * advantage)
    return -objective


def sequence_ratios(c: Case) -> dict[int, float]:
    result = {}
    for row in c.sampled():
        if row:
            s = math.exp(sum((c.new[i] - c.old[i]).item() for i in row) / len(row))
            result |= dict.fromkeys(row, s)
    return result


def check_tokens(per_token: torch.Tensor, c: Case, expected: dict[int, float]) -> None:
    full = torch.zeros(len(c.mask), dtype=torch.float64)
    for i, value in expected.items():
        full[i] = value
    torch.testing.assert_close(torch.where(c.mask.bool(), per_token, 0.0), full, rtol=1e-10, atol=1e-12)


def mean_of(metric):
    return (metric[0] / metric[1]).item()
