"""NEFTune: noise of each sequence's own scale and seed, packed or padded, in training alone."""

import numpy as np
import pytest
import torch

from rlhf_ray.algorithms.noise import embedding_noise
from rlhf_ray.batch import from_sequences
from rlhf_ray.config import SFTJob
from rlhf_ray.data.examples import Rows
from rlhf_ray.models.log_probs import PolicyModel
from rlhf_ray.tasks.language_model import LanguageModelObjective
from rlhf_ray.tasks.sft import SFT, seed_rows
from rlhf_ray.toy import world as toy
from tests.helpers import TINY
from tests.unit.models.test_models import groups, made

CPU = torch.device("cpu")
LENGTHS, SEEDS, WIDTH = (5, 2, 9, 40), (3, 2**63 + 1, 4, 3), 32


def test_each_sequence_has_its_own_scale_and_numbers():
    noises = embedding_noise(torch.tensor(LENGTHS), WIDTH, 5.0, SEEDS).split(LENGTHS)
    for noise, length, seed in zip(noises, LENGTHS, SEEDS, strict=True):
        bound = 5.0 / np.sqrt(length * WIDTH)
        assert noise.shape == (length, WIDTH)
        assert float(noise.abs().max()) <= bound
        assert float(noise.min()) < -0.9 * bound
        assert float(noise.max()) > 0.9 * bound
        alone = embedding_noise(torch.tensor([length]), WIDTH, 5.0, [seed])
        assert torch.equal(alone, noise)
    assert torch.allclose(noises[0].flatten() * np.sqrt(5), noises[3].flatten()[: 5 * WIDTH] * np.sqrt(40))  # one seed
    assert float((noises[0].flatten() * np.sqrt(5) - noises[2].flatten()[: 5 * WIDTH] * 3).abs().max()) > 0.1


def batch():
    draw = np.random.default_rng(0)
    rows = [draw.integers(0, 50, n) for n in (5, 2, 9)]
    masks = [np.r_[0, np.ones(len(r) - 1)] for r in rows]
    number = np.arange(3)
    return from_sequences(
        rows, response_mask=masks, prompt_length=[1] * 3, group=number, example_id=number, seed=[7, 8, 9]
    )


@pytest.mark.parametrize("attention", ["packed", "padded"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_loss_is_that_of_each_sequence_with_its_noise(kind, attention):
    plain, naive = made(kind), 0.0
    embed = plain.get_input_embeddings()
    for tokens, seed in zip(batch().sequences(), (7, 8, 9), strict=True):
        ids = torch.tensor(tokens).long()
        with torch.no_grad():
            uniform = torch.rand(len(ids), 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1
            embeddings = embed(ids) + uniform * 20.0 / np.sqrt(len(ids) * 32)
            log_p = plain(inputs_embeds=embeddings[None]).logits[0].log_softmax(-1)
        naive -= sum(float(log_p[i - 1, ids[i]]) for i in range(1, len(ids)))
    wrapped, objective = PolicyModel(made(kind), attention), LanguageModelObjective(neftune_alpha=20.0)
    noisy = objective.loss(wrapped, batch(), CPU)[0]
    assert float(noisy.detach()) == pytest.approx(naive, rel=1e-5)
    quiet = LanguageModelObjective().loss(wrapped, batch(), CPU)[0].detach()  # and no hook was left behind
    assert abs(naive - float(quiet)) > 1e-2
    with torch.no_grad():
        assert torch.equal(
            objective.loss(wrapped, batch(), CPU)[0], LanguageModelObjective().loss(wrapped, batch(), CPU)[0]
        )


def test_tokens_of_a_shared_prompt_get_the_noise_of_the_first_of_their_sequences():
    tokens, lengths, shared, at = groups()
    noise = embedding_noise(lengths, 32, 20.0, range(len(lengths)))
    starts = torch.cumsum(lengths, 0) - lengths
    same, leader = noise.clone(), 0
    for row, common in enumerate(shared.tolist()):
        leader = row if common == 0 else leader
        same[starts[row] : starts[row] + common] = noise[starts[leader] : starts[leader] + common]
    model = PolicyModel(made("llama"), "packed")
    with torch.no_grad():
        once = model(tokens, lengths, at, shared=shared, noise=noise)[0]
        unshared = model(tokens, lengths, at, noise=same)[0]
    torch.testing.assert_close(once, unshared, atol=1e-5, rtol=1e-5)


def test_a_step_has_its_own_noise_and_has_it_again():
    examples = Rows([{"prompt": "the view", "completion": "was great"}] * 3, "x.jsonl", range(1, 4))
    values = {"model": {"init": TINY, "tokenizer": "toy"}, "data": {"path": "none"}, "num_steps": 1}
    task = SFT.build(SFTJob(**values, neftune_alpha=5.0), examples, None, toy.tokenizer())
    assert task.objective == LanguageModelObjective(neftune_alpha=5.0)
    first, again, other = (
        task.view(task.data.train.take(rows), [1, step]).seed for rows, step in (([0, 2], 4), ([2], 4), ([2], 5))
    )
    assert first[1] == again[0] != first[0]
    assert again[0] != other[0]
    assert SFT.build(SFTJob(**values), examples, None, toy.tokenizer()).view is None
    assert seed_rows(task.data.train, [2, 4]).seed[2] != again[0]
