"""A chain of positions whose optimal values are known exactly, walks on it that are mostly bad, and the same walks as
texts.

A walker moves left or right (at a wall it stays) or stops, and is paid one step later: 1 at the right end, 0.3 at the
left one, 0 in between. Each step discounts. As text a walk is the positions it comes to: "p2" | "p3 p4 p5 stop <eos>",
paid at <eos>.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SIZE, GAMMA, LONGEST = 6, 0.9, 12
LEFT, RIGHT, STOP = range(3)
BEHAVIOUR = (0.5, 0.3, 0.2)
PAYS = np.array([0.3, 0, 0, 0, 0, 1.0])
PLACES = [f"p{i}" for i in range(SIZE)]
FIRST, STOPPED = 4, 4 + SIZE  # token ids of p0 and of stop

Walk = list[tuple[int, int]]  # position, action


def moved(position: int, action: int) -> int:
    """Where a move from ``position`` leads."""
    return min(max(position + (1 if action == RIGHT else -1), 0), SIZE - 1)


def optimal() -> np.ndarray:
    """Q* (SIZE, 3) by value iteration to its fixed point."""
    return expectile_values(lambda q: q.max(1))


def expectile_values(value) -> np.ndarray:
    """The fixed point (SIZE, 3) of Q(p, move) = gamma value(Q)[where it leads], Q(p, stop) = gamma * what it pays."""
    q = np.zeros((SIZE, 3))
    while True:
        v = value(q)
        new = np.array([[GAMMA * v[moved(p, LEFT)], GAMMA * v[moved(p, RIGHT)], GAMMA * PAYS[p]] for p in range(SIZE)])
        if np.abs(new - q).max() < 1e-12:
            return new
        q = new


def expectile(q: np.ndarray, tau: float) -> np.ndarray:
    """(SIZE,): the tau-expectile of each position's Q under the walkers' actions, by bisection."""
    low, high = q.min(1), q.max(1)
    for _ in range(60):
        v = (low + high) / 2
        u = q - v[:, None]
        rises = (np.where(u < 0, 1 - tau, tau) * u * BEHAVIOUR).sum(1) > 0
        low, high = np.where(rises, v, low), np.where(rises, high, v)
    return low


def walks(count: int, seed: int) -> list[Walk]:
    """Random walks from all positions; the last of LONGEST actions is to stop."""
    draw = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        position, walk = i % SIZE, []
        while not walk or walk[-1][1] != STOP:
            action = STOP if len(walk) == LONGEST - 1 else int(draw.choice(3, p=BEHAVIOUR))
            walk.append((position, action))
            position = moved(position, action)
        rows.append(walk)
    return rows


def q_learning(some: list[Walk], rate: float) -> np.ndarray:
    """Tabular Q-learning (Watkins 1989), off-policy: Q (SIZE, 3) after each transition of the walks, in their order."""
    q = np.zeros((SIZE, 3))
    for walk in some:
        for position, action in walk:
            target = GAMMA * (PAYS[position] if action == STOP else q[moved(position, action)].max())
            q[position, action] += rate * (target - q[position, action])
    return q


def row(walk: Walk) -> dict[str, object]:
    """The example of a walk: prompt, completion, reward."""
    places = [moved(p, a) for p, a in walk[:-1]]
    return {
        "prompt": f"p{walk[0][0]}",
        "completion": " ".join([*(f"p{p}" for p in places), "stop"]),
        "reward": float(PAYS[walk[-1][0]]),
    }


def paid(prompt: str, completion: str) -> float:
    """What a walk in words pays: 0 where it jumps or never stops."""
    *moves, last = completion.split() or [""]
    if last != "stop" or not all(word in PLACES for word in moves):
        return 0.0
    places = [PLACES.index(word) for word in [prompt, *moves]]
    sound = all(b in (moved(a, LEFT), moved(a, RIGHT)) for a, b in pairwise(places))
    return float(PAYS[places[-1]]) if sound else 0.0


def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the places and stop; ids as above, eos 2."""
    words = ["<pad>", "<bos>", "<eos>", "<unk>", *PLACES, "stop"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=1 << 20,
    )
