"""The driver's parts without Ray: seeds of refills, steps without a varied group, masks, evaluations kept or made anew."""

import socket
from types import SimpleNamespace

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from rlhf_ray.batch import cat, from_sequences
from rlhf_ray.config import BadInput, LearnerConfig, ModelConfig, parse
from rlhf_ray.config.jobs import EvaluateRL
from rlhf_ray.learner import zero
from rlhf_ray.models import load as models
from rlhf_ray.rewards.reward import RewardError
from rlhf_ray.toy import world as toy
from rlhf_ray.train import advantages, roles
from rlhf_ray.train import evaluation as heldout
from rlhf_ray.train.dispatch import Prompts, chunks
from rlhf_ray.train.learner_group import sync_tolerance
from rlhf_ray.train.rollout_queue import Rollouts
from rlhf_ray.train.setup import _ptx
from tests.helpers import TINY, rl_job

PROMPTS = Prompts(
    [np.array([5, 6]), np.array([7])], pa.table({"example_id": [0, 1], "prompt": ["a", "b"]}), np.array([0, 1])
)
HELDOUT = {"path": "toy:reviews/prompts", "split": "heldout", "size": 4, "max_prompt_tokens": 32}


class Scored:
    """Answers orders as a Collector would: reward ``value(group)``, plus the sample's number where the group varies."""

    def __init__(self, value, varied):
        self.value, self.varied, self.orders = value, varied, []

    def generate(self, order, prompts):
        self.orders.append(order)
        return SimpleNamespace(order=order, scored=lambda: self.collect(order, prompts))

    def collect(self, order, prompts):
        rows = []
        for chunk in chunks(order, prompts, 2, 0):
            for group, example, first in zip(chunk.group, chunk.example_id, chunk.first_sample, strict=True):
                for j in range(order.samples):
                    reward = self.value(group) + j * self.varied(group)
                    rows.append((group, example, first + j, reward))
        group, example, sample, reward = map(np.array, zip(*rows, strict=True))
        return from_sequences(
            [np.array([1, 2, 3])] * len(rows), response_mask=[np.array([0, 1, 1])] * len(rows), group=group,
            example_id=example, sample=sample, prompt_length=[1] * len(rows), reward_parts=reward[:, None],
        ).sorted()  # fmt: skip

    def take_counters(self):
        return {}

    def forget(self):
        pass


def rollouts(value=lambda g: 1.0, varied=lambda g: True, **algorithm):
    job = parse(rl_job(algorithm={"type": "grpo", "group_size": 2, **algorithm}), "job")
    return Rollouts(job, Scored(value, varied), PROMPTS)


def test_refills_that_visit_a_prompt_again_sample_anew():
    made = rollouts(varied=lambda g: g % 5 == 0, dynamic_sampling={"max_rounds": 4})
    batch, metrics = made.take(0)  # 8 prompts of 2, so every round visits each of them several times
    names = list(zip(batch.example_id.tolist(), batch.sample.tolist(), strict=True))
    assert len(set(names)) == len(names)
    assert metrics["rollout/refills"] == 3
    every = cat(Scored(lambda g: 0, lambda g: 0).collect(o, PROMPTS) for o in made.collector.orders)
    names = list(zip(every.example_id.tolist(), every.sample.tolist(), strict=True))
    assert len(set(names)) == len(names)


def test_a_step_trains_on_what_there_is_and_one_without_a_varied_group_on_nothing(tmp_path):
    made = rollouts(varied=lambda g: g in (3, 30), dynamic_sampling={"max_rounds": 2})
    first, metrics = made.take(0)
    assert (len(first), metrics["rollout/groups"]) == (2, 1)
    made.fetch(1)
    state = made.save(tmp_path)
    again = rollouts()
    again.restore(tmp_path, state)
    for one in (made, again):
        second, metrics = one.take(1)
        assert len(second) == 2
    third, metrics = made.take(2)
    assert (len(third), metrics["rollout/groups"]) == (0, 0)


def test_an_empty_step_survives_a_checkpoint(tmp_path):
    made = rollouts(varied=lambda g: False, dynamic_sampling={"max_rounds": 1})
    made.fetch(0)
    again = rollouts()
    again.restore(tmp_path, made.save(tmp_path))
    assert len(again.take(0)[0]) == 0


@pytest.mark.filterwarnings("ignore:(Mean of empty|Degrees of freedom)")
def test_a_step_in_which_every_reward_failed_ends_the_run():
    with pytest.raises(RewardError, match="no sample got a reward"):
        rollouts(value=lambda g: float("nan")).take(0)


def test_nothing_runs_once_rollouts_are_closed():
    made = rollouts()
    made.take(0)
    made.close()
    with pytest.raises(RuntimeError, match="shutdown"):
        made.fetch(1)


def remax(truncated):
    """Two groups of a sample and a greedy row."""
    masks = [[0, 1, 1], [0, 0, 0]] * 2
    batch = from_sequences(
        [np.arange(3)] * 4, response_mask=list(map(np.array, masks)), prompt_length=[1] * 4, group=[0, 0, 1, 1],
        example_id=[0, 0, 1, 1], sample=[0, 1, 0, 1], rewards=[1.0, 0.25, 3.0, 1.0], truncated=truncated,
        old_log_probs=[np.zeros(3)] * 4,
    )  # fmt: skip
    job = parse(rl_job(algorithm={"type": "remax", "truncated": "mask"}), "job")
    return advantages.estimate(batch, job.algorithm, 0.0, 8)[0]


def test_a_truncated_sample_is_no_greedy_one():
    assert remax([0, 0, 0, 0]).group.tolist() == [0, 1]
    left = remax([1, 0, 0, 1])
    assert left.group.tolist() == [1]
    np.testing.assert_allclose(left.advantages, [0, 2, 2])
    assert len(remax([1, 1, 1, 1])) == 0


@pytest.mark.parametrize("kind", ["ppo", "grpo", "rloo", "reinforce_plus_plus"])
def test_a_step_whose_samples_are_all_truncated_leaves_nothing(kind):
    job = parse(rl_job(algorithm={"type": kind, "truncated": "mask", "group_size": 2}), "job")
    tokens = [np.zeros(3)] * 4
    batch = from_sequences(
        tokens, response_mask=[np.array([0, 1, 1])] * 4, prompt_length=[1] * 4, group=[0, 0, 1, 1], rewards=np.arange(4),
        truncated=[1] * 4, old_log_probs=tokens, ref_log_probs=tokens, values=tokens, final_values=[0] * 4,
    )  # fmt: skip
    assert len(advantages.estimate(batch, job.algorithm, 0.1, 8)[0]) == 0


def test_online_dpo_learns_from_the_best_and_the_worst_of_each_group():
    job = parse(rl_job(algorithm={"type": "online_dpo", "group_size": 3}), "job")
    tokens = [np.zeros(3)] * 9
    batch = from_sequences(
        tokens, response_mask=[np.array([0, 1, 1])] * 9, prompt_length=[1] * 9, group=np.arange(9) // 3,
        rewards=[1, 3, 2, 5, 5, 5, 2, 0, 2], truncated=[0] * 9, old_log_probs=tokens, ref_log_probs=tokens,
        example_id=np.arange(9) // 3, sample=np.arange(9) % 3,
    )  # fmt: skip
    found, _ = advantages.estimate(batch, job.algorithm, 0.1, 8)
    assert list(zip(found.group, found.sample, found.labels[:, 0], strict=True)) == [
        (0, 0, 0),
        (0, 1, 1),
        (2, 0, 1),
        (2, 1, 0),
    ]
    objective = advantages.objective(job.algorithm, 0.1, 1.0, 8, False)
    assert (objective.unit, objective.config.beta, objective.weight(found)) == ("group", 0.1, 2)
    with pytest.raises(BadInput, match=r"kl\.coef is DPO's beta"):
        parse(rl_job(algorithm={"type": "online_dpo", "kl": {"coef": 0}}), "job")


@pytest.mark.parametrize(("learner", "engine"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_the_looser_dtype_decides_what_a_sync_may_differ_by(learner, engine):
    job = rl_job()
    job["model"], job["rollout"] = {**job["model"], "dtype": learner}, {**job["rollout"], "engine": {"dtype": engine}}
    assert sync_tolerance(parse(job, "job")) == 0.3
    assert sync_tolerance(parse(rl_job(), "job")) == 1e-3


@pytest.mark.parametrize(
    ("changes", "columns"),
    [
        ({}, []),  # one update a step, without KL: its own log-probs are the old ones
        ({"epochs": 2}, ["old_log_probs"]),
        ({"num_mini_batches": 2}, ["old_log_probs"]),
        ({"kl": {"coef": 0.1}}, ["old_log_probs", "ref_log_probs"]),
    ],
)
def test_nothing_is_annotated_that_an_update_computes_itself(changes, columns):
    assert parse(rl_job(algorithm={"type": "grpo", **changes}), "job").columns_to_annotate == columns


@pytest.mark.parametrize("context", [16, 128])
def test_pretraining_text_is_cut_at_the_context(monkeypatch, context):
    monkeypatch.setattr("ray.put", lambda batch: batch)
    text = {"path": "toy:reviews/text", "size": 16}
    job = parse(rl_job(ptx_data=text, algorithm={"type": "ppo", "ptx_coef": 0.1}), "job")
    assert _ptx(job, toy.tokenizer(), context).batch.lengths.max() <= context


def test_a_random_model_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    config, made = ModelConfig(init=TINY, tokenizer="toy"), models.create

    def killed(config, directory, tokenizer, seed, *more):
        made(config, directory, tokenizer, seed)
        (tmp_path / directory / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "create", killed)
    with pytest.raises(KeyboardInterrupt):
        roles.prepare(config, tmp_path, 1)
    monkeypatch.setattr(models, "create", made)
    found, _ = roles.prepare(config, tmp_path, 1)
    assert list(models.tensors(str(found.path)))
    assert [p.name for p in tmp_path.iterdir()] == ["init"]


def table(step):
    return pa.table({"example_id": [0], "sample": [0], "prompt": ["a"], "completion": ["b"], "reward": [float(step)]})


def test_a_run_that_goes_on_keeps_the_evaluations_it_will_not_make_again(tmp_path):
    asked = EvaluateRL(data=HELDOUT, every=2)
    for step in (0, 2, 4, 1_000_000):
        heldout.write(heldout.path(tmp_path, step), table(step), asked)
    assert [f["reward"][0].as_py() for f in heldout.first_and_last(tmp_path)] == [0, 1_000_000]
    heldout.prune(tmp_path, 2, asked.model_copy(update={"every": 3, "num_shown": 9}))
    assert [f.stem for f in heldout.files(tmp_path)] == ["step-000000", "step-000002"]
    heldout.prune(tmp_path, 2, EvaluateRL())
    assert len(heldout.files(tmp_path)) == 2
    heldout.prune(tmp_path, 2, EvaluateRL(data={**HELDOUT, "size": 3}))
    assert heldout.files(tmp_path) == []


def rates(num_updates, steps, state=None):
    """Learning rates of an SGD optimizer under a linear schedule, and the state after it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    plan = LambdaLR(optimizer, zero.schedule(LearnerConfig(schedule="linear", warmup_steps=1), num_updates))
    if state is not None:
        optimizer.load_state_dict(state[0])
        plan.load_state_dict(state[1])
        fake = SimpleNamespace(lr_scheduler=plan, load_checkpoint=lambda *a, **k: ("here", {}))
        zero.load(fake, "directory", "actor")
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        plan.step()
    return found, (optimizer.state_dict(), plan.state_dict())


def test_a_job_that_is_made_longer_follows_the_longer_schedule():
    short, state = rates(4, 4)
    longer, _ = rates(8, 8)
    assert short == pytest.approx([0.5, 1.0, 2 / 3, 1 / 3])
    assert rates(8, 4, state)[0] == pytest.approx(longer[4:])
    assert rates(4, 1, rates(4, 2)[1])[0] == short[2:3]


def test_the_interface_of_an_address_is_the_one_that_reaches_it():
    """gloo is told this one; the host's name may resolve to 127.0.0.1."""
    assert zero.interface("127.0.0.1") == "lo"
    for name, found in psutil.net_if_addrs().items():
        for own in [a.address for a in found if a.family == socket.AF_INET and psutil.net_if_stats()[name].isup]:
            assert zero.interface(own) == name
