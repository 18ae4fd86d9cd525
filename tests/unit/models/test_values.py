"""Implicit language Q-learning: losses against naive loops, value heads, targets, guided decoding."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_ray import flops
from rlhf_ray.algorithms import values
from rlhf_ray.algorithms.advantages import gae
from rlhf_ray.batch import from_sequences
from rlhf_ray.config import BadInput, LoraConfig, ModelConfig, RolloutConfig, parse
from rlhf_ray.learner import zero
from rlhf_ray.models.load import load_model, wrap_model
from rlhf_ray.models.value_heads import ActionLinear, ValueModel, guide_model, save_heads
from rlhf_ray.rollout.chunk import Chunk
from rlhf_ray.rollout.worker import EngineResources, RolloutWorker
from rlhf_ray.tasks.ilql import ImplicitQObjective
from tests import chain
from tests.helpers import TINY, rl_job
from tests.unit.algorithms.helpers import case

VOCAB, GAMMA, TAU = 40, 0.9, 0.8


@pytest.mark.parametrize("seed", range(5))
def test_targets_and_losses_are_the_naive_loops(seed):
    c = case(seed)
    rewards, v, q = c.advantages, c.new, torch.stack([c.old, c.rollout])
    targets = values.td_targets(rewards, v, c.mask, c.lengths, GAMMA)
    naive = torch.zeros_like(targets)
    for row in c.sampled():
        for here, after in zip(row, [*row[1:], None], strict=False):
            naive[here] = rewards[here] + (0.0 if after is None else GAMMA * v[after])
    torch.testing.assert_close(targets, naive)
    torch.testing.assert_close(targets, gae(rewards, v, c.mask, c.lengths, GAMMA, 0.0)[1])
    at = c.positions()
    error, shown = values.squared_td_error(q, targets, c.mask)
    assert float(error) == pytest.approx(sum(float(naive[i] - head[i]) ** 2 for head in q for i in at))
    assert [float(x) for x in shown["loss/td"]] == pytest.approx([float(error), 2 * len(at)])
    loss, _ = values.expectile_loss(v, q[0], c.mask, TAU)
    differences = [float(q[0, i] - v[i]) for i in at]
    assert float(loss) == pytest.approx(sum((TAU if u >= 0 else 1 - TAU) * u * u for u in differences))


@pytest.mark.parametrize("seed", range(5))
def test_the_conservative_term_is_the_cross_entropy_of_qs_softmax(seed):
    c, draw = case(seed), torch.Generator().manual_seed(seed)
    table = torch.randn(2, len(c.mask), 7, generator=draw, dtype=torch.float64)
    taken = torch.randint(0, 7, (len(c.mask),), generator=draw)
    log_softmax = torch.where(c.mask.bool(), table.log_softmax(-1)[:, torch.arange(len(taken)), taken], torch.nan)
    naive = 0.0
    for row in table.tolist():
        for i in c.positions():
            naive += np.log(sum(np.exp(q) for q in row[i])) - row[i][taken[i]]
    assert float(values.conservative_loss(log_softmax, c.mask)[0]) == pytest.approx(naive)


def test_what_is_not_learned_has_no_gradient():
    c = case(0)
    v, q = (torch.where(c.mask.bool(), x, 0.0).requires_grad_() for x in (c.new, c.old))
    assert not values.td_targets(c.advantages, v, c.mask, c.lengths, GAMMA).requires_grad
    values.expectile_loss(v, q, c.mask, TAU)[0].backward()
    assert q.grad is None
    inside = c.mask.bool()
    assert (v.grad[inside] != 0).all()
    assert (v.grad[~inside] == 0).all()
    with pytest.raises(ValueError, match="between 0 and 1"):
        values.expectile_loss(v, q, c.mask, 1.0)


def test_the_expectile_that_minimises_the_loss_is_the_chains():
    """The loss's gradient vanishes at the expectile that bisection finds: two ways to one number."""
    q = torch.tensor(chain.optimal())
    v = torch.tensor(chain.expectile(chain.optimal(), TAU)).requires_grad_()
    for action, share in enumerate(chain.BEHAVIOUR):
        mask = torch.ones(chain.SIZE)
        (share * values.expectile_loss(v, q[:, action], mask, TAU)[0]).backward()
    assert v.grad.abs().max() < 1e-9


def plain(**options):
    torch.manual_seed(0)
    config = AutoConfig.for_model(**{**TINY, "vocab_size": VOCAB, "initializer_range": 0.3, **options})
    return AutoModelForCausalLM.from_config(config).eval()


def scrambled(model):
    """The model with heads that say something, each another thing."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    return model


def samples():
    """Rows with a hole in one response, and rewards anywhere in it."""
    draw = np.random.default_rng(0)
    tokens = [draw.integers(0, VOCAB, n) for n in (5, 9, 3)]
    masks = [np.r_[np.zeros(2), np.ones(len(t) - 2)] for t in tokens]
    masks[1][4:6] = 0
    rewards = [draw.standard_normal(len(t)) for t in tokens]
    return from_sequences(
        tokens,
        response_mask=masks,
        step_rewards=rewards,
        group=np.arange(3),
        example_id=np.arange(3),
        prompt_length=[2] * 3,
    )


def naive_loss(model, batch, objective):
    """One row, one token, and the whole vocabulary at a time."""
    total, heads = 0.0, model.heads
    for row in range(len(batch)):
        one = batch.take([row])
        ids = torch.tensor(one.tokens).long()
        lm = plain()
        hidden = lm.base_model(input_ids=ids[None]).last_hidden_state[0]
        log_p = lm.lm_head(hidden).log_softmax(-1)
        at = np.flatnonzero(one.response_mask)
        v = {i: float(heads.v(hidden[i - 1])) for i in at}
        for i, after in zip(at, [*at[1:], None], strict=True):
            y = float(one.step_rewards[i]) + (0.0 if after is None else objective.gamma * v[after])
            low = min(float(head(hidden[i - 1])[ids[i]]) for head in heads.target)
            u = low - v[i]
            total += abs(objective.expectile - (u < 0)) * u * u - objective.behaviour_coef * float(log_p[i - 1, ids[i]])
            for head in heads.q:
                q = head(hidden[i - 1])
                total += (y - float(q[ids[i]])) ** 2
                total += objective.conservative_coef * float(q.logsumexp(-1) - q[ids[i]])
    return total


OBJECTIVE = ImplicitQObjective(gamma=GAMMA, expectile=TAU, conservative_coef=0.2, behaviour_coef=0.5)
CPU = torch.device("cpu")


@pytest.mark.parametrize("attention", ["packed", "padded"])
def test_the_objective_is_the_naive_sum_and_micro_batches_add_up(attention):
    model, batch = scrambled(ValueModel(plain(), attention)), samples()
    with torch.no_grad():
        total, metrics = OBJECTIVE.loss(model, batch, CPU)
        assert float(total) == pytest.approx(naive_loss(model, batch, OBJECTIVE), rel=1e-4)
        parts = [OBJECTIVE.loss(model, batch.take([i]), CPU)[0] for i in range(3)]
    assert float(sum(parts)) == pytest.approx(float(total), rel=1e-5)
    assert OBJECTIVE.weight(batch) == 9 == float(metrics["loss/cross_entropy"][1])


def gradients(model, batch):
    """Of one pass over the batch, by name."""
    model.zero_grad()
    loss, _ = OBJECTIVE.loss(model, batch, CPU)
    (loss / OBJECTIVE.weight(batch)).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_all_but_the_targets_learn_and_chunks_change_nothing(monkeypatch):
    model, batch = scrambled(ValueModel(plain(), "packed")), samples().take(np.tile([0, 1, 2], 20))
    expected = gradients(model, batch)
    assert set(expected) == {n for n, _ in model.named_parameters() if not n.startswith("heads.target.")}
    monkeypatch.setattr(flops, "HEAD_CHUNK_LOGITS", 1)  # 180 tokens in two chunks
    for name, gradient in gradients(model, batch).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4)


def test_new_heads_say_zero_and_are_the_same_everywhere():
    torch.manual_seed(1)
    one = ValueModel(plain(), "packed")
    torch.manual_seed(2)
    other = ValueModel(plain(), "packed")
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    first, second = one.heads.q
    assert not torch.equal(first.inner.weight, second.inner.weight)  # two heads, or their minimum is one of them
    estimates = one(torch.arange(5), torch.tensor([5]), torch.tensor([2, 3, 4]), False)
    assert estimates.log_probs is None
    assert not estimates.q.any()
    assert not estimates.values.any()


def test_a_linear_layer_answers_for_one_output_a_row():
    layer, x, actions = ActionLinear(6, 9), torch.randn(4, 6), torch.tensor([8, 0, 3, 3])
    torch.testing.assert_close(layer(x, actions), layer(x)[torch.arange(4), actions])
    outputs, log_softmax = layer(x, actions, True)
    torch.testing.assert_close(outputs, layer(x, actions))
    torch.testing.assert_close(log_softmax, layer(x).log_softmax(-1)[torch.arange(4), actions])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_targets_follow_as_polyak_averages_whatever_the_dtype(dtype):
    model = ValueModel(plain().to(dtype), "packed")
    averages = zero.PolyakAverages(model.heads.parameter_pairs(), 0.005)
    with torch.no_grad():
        for source, _ in model.heads.parameter_pairs():
            source.fill_(1.0)
    before = [t.float().clone() for _, t in model.heads.parameter_pairs()]
    for _ in range(40):
        averages.update()
    for (_, target), start in zip(model.heads.parameter_pairs(), before, strict=True):
        expected = 1 + (start - 1) * 0.995**40
        torch.testing.assert_close(
            target.detach().float(), expected, atol=1e-5 if dtype == torch.float32 else 4e-3, rtol=0
        )
    fresh = ValueModel(plain().to(dtype), "packed")
    again = zero.PolyakAverages(fresh.heads.parameter_pairs(), 0.005)
    again.load(averages.values)
    for one, other in zip(fresh.heads.target.parameters(), model.heads.target.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_model_whose_logits_are_changed_after_the_head_is_refused():
    with pytest.raises(BadInput, match="logit_scale"):
        ValueModel(plain(logit_scale=0.5), "packed")


def test_adapters_leave_the_heads_alone():
    model = wrap_model("values", plain(), attention="packed", lora=LoraConfig(rank=2))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n in trained if "lora_" not in n} == {
        n for n, _ in model.named_parameters() if n.startswith(("heads.q.", "heads.v."))
    }
    assert any("lora_" in n for n in trained)


@pytest.fixture
def saved(tmp_path):
    """A model directory with heads that say something."""
    model = scrambled(ValueModel(plain(), "packed"))
    model.core.save_pretrained(tmp_path)
    save_heads(dict(model.heads.state_dict()), str(tmp_path))
    return tmp_path


def test_saved_heads_come_back_and_the_directory_is_a_plain_model(saved):
    model = load_model("values", str(saved))
    assert model.heads.restore(str(saved))
    for one, other in zip(
        model.heads.parameters(), scrambled(ValueModel(plain(), "packed")).heads.parameters(), strict=True
    ):
        assert torch.equal(one, other)
    _, info = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]


def generated(path, guided, greedy=True):
    """Four answers of a rollout worker, as a Batch."""
    config = RolloutConfig(max_new_tokens=6, engine={"type": "transformers", "guide": guided})
    worker = RolloutWorker(config, ModelConfig(path=str(path)), (2,), EngineResources("cpu", 1, 32))
    worker.check()
    prompts = [np.array(p) for p in ([5, 6, 7], [8], [9, 3], [4, 4, 4, 4])]
    order = [0, 1, 2, 3]
    chunk = Chunk(
        step=0,
        run_seed=0,
        prompts=prompts,
        example_id=order,
        group=order,
        first_sample=[0] * 4,
        samples=1,
        greedy=greedy,
    )
    return next(worker.generate(-1, chunk, 4)).sorted()


@pytest.mark.parametrize("beta", [0.0, 3.0])
def test_guided_samples_are_those_of_the_formula(saved, beta):
    """log pi + beta (min of the target Qs - V), by a pass over each sequence; sampled log-probs are that policy's."""
    batch, lm = generated(saved, beta, greedy=False), plain()
    heads = scrambled(ValueModel(plain(), "packed")).heads
    for row in range(len(batch)):
        one = batch.take([row])
        ids = torch.tensor(one.tokens).long()
        with torch.no_grad():
            hidden = lm.base_model(input_ids=ids[None]).last_hidden_state[0]
            q = torch.minimum(*(head(hidden) for head in heads.target))
            policy = (lm.lm_head(hidden).log_softmax(-1) + beta * (q - heads.v(hidden))).log_softmax(-1)
        at = np.flatnonzero(one.response_mask)
        expected = [float(policy[i - 1, ids[i]]) for i in at]
        np.testing.assert_allclose(one.rollout_log_probs[at], expected, atol=1e-4)


def test_guidance_changes_greedy_answers(saved):
    assert generated(saved, 0.0).tokens.tolist() != generated(saved, 10.0).tokens.tolist()


def test_guidance_without_heads_is_bad_input(tmp_path):
    plain().save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=r"has no value_heads.*needs value heads"):
        generated(tmp_path, 1.0)
    with pytest.raises(BadInput, match="final_logit_softcapping"):
        guide_model(plain(final_logit_softcapping=30.0), str(tmp_path), 1.0)


def test_training_rollouts_are_never_guided():
    job = rl_job()
    job["rollout"] |= {"engine": {"type": "transformers", "guide": 1.0}}
    with pytest.raises(BadInput, match=r"rollout\.engine\.guide: training rollouts"):
        parse(job, "job")
    assert RolloutConfig(engine={"guide": 2.0}).unguided == RolloutConfig()


def test_a_frozen_language_model_has_no_adapter_to_train():
    job = {"job": "ilql", "num_steps": 1, "data": {"path": "x"}, "behaviour_coef": 0}
    job["model"] = {"path": "m", "lora": {"rank": 2}}
    with pytest.raises(BadInput, match="would learn nothing"):
        parse(job, "job")


def test_tabular_q_learning_finds_the_chains_optimal_values():
    """Off-policy: the walkers go left more often than right, and the values are those of the best walker."""
    best, learned = chain.optimal(), chain.q_learning(chain.walks(600, seed=0), rate=0.5)
    np.testing.assert_allclose(learned, best, atol=1e-6)
    steps = chain.SIZE - 1 - np.arange(chain.SIZE)
    np.testing.assert_allclose(best.max(1), chain.GAMMA ** (steps + 1))  # all go right and stop there: a closed form
    assert np.mean([chain.row(w)["reward"] for w in chain.walks(600, seed=0)]) < 0.25
