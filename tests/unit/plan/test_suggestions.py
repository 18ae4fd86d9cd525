"""What would help: which overrides are tried for which jobs, and which of them are named."""

import pytest

from rlhf_ray.config import apply_overrides, parse
from rlhf_ray.plan import suggestions
from rlhf_ray.plan.forecast import forecast, lengths
from rlhf_ray.plan.hardware import cluster
from rlhf_ray.plan.requirements import Models, Setting
from rlhf_ray.plan.shape import shape_of
from tests.helpers import rl_job
from tests.unit.plan.published import GIANTS

PPO = rl_job(model={"path": "policy", "dtype": "bfloat16"}, algorithm={"type": "grpo", "group_size": 4})
SFT = {"job": "sft", "model": {"path": "policy"}, "data": {"path": "rows.jsonl"}, "num_steps": 1, "max_length": 2048}
SAMPLE = {"job": "sample", **{key: PPO[key] for key in ("model", "data", "rewards")}}


def job_with(tree, *overrides):
    return parse(apply_overrides(tree, list(overrides)), "job")


def forecast_of(job, gpus):
    models = Models(policy=shape_of(GIANTS["qwen2-7b"]))
    return forecast(job, Setting(models=models, cluster=cluster(gpus), lengths=lengths(job)))


@pytest.mark.parametrize(
    ("suggest", "tree", "overrides", "suggested"),
    [
        (suggestions.recompute_activations, SFT, [], "model.gradient_checkpointing=true"),
        (suggestions.recompute_activations, SAMPLE, [], None),
        (suggestions.shard_gradients, SFT, ["learner.zero_stage=1"], "learner.zero_stage=2"),
        (suggestions.shard_gradients, SFT, ["learner.zero_stage=3"], None),
        (suggestions.smallest_micro_batches, SFT, [], "learner.micro_batch_tokens=2048"),
        (suggestions.smallest_micro_batches, PPO, ["data.max_prompt_tokens=100", "rollout.max_new_tokens=28"],
         "learner.micro_batch_tokens=128"),
        (suggestions.smallest_micro_batches, SAMPLE, [], None),
        (suggestions.bfloat16_engine, SAMPLE, [], "rollout.engine.dtype=bfloat16"),
        (suggestions.smaller_reservation, PPO, [], None),
        (suggestions.smaller_reservation, PPO, ["rollout.engine={type: vllm}"], "rollout.engine.memory_fraction=0.3"),
        (suggestions.smaller_reservation, PPO, ["rollout.engine={type: vllm, memory_fraction: 0.2}"], None),
        (suggestions.fewer_rows, PPO, ["rollout.engine.max_rows=8"], None),
        (suggestions.generate_ahead, PPO, [], "rollout.ahead=1"),
        (suggestions.generate_ahead, PPO, ["rollout.ahead=2"], None),
        (suggestions.vllm_engine, PPO, ["rollout.engine={type: vllm, memory_fraction: 0.2}"], None),
        (suggestions.more_learner_ranks, SFT, ["learner.num_workers=3"], "learner.num_workers=6"),
        (suggestions.one_chunk_per_worker, PPO, ["rollout.prompts_per_step=9", "rollout.num_workers=2"],
         "rollout.chunk_prompts=5"),
        (suggestions.larger_micro_batches, SAMPLE, [], None),
    ],
)  # fmt: skip
def test_a_suggestion_has_the_numbers_of_the_job(suggest, tree, overrides, suggested):
    assert suggest(job_with(tree, *overrides)) == suggested


@pytest.mark.parametrize("tree", [PPO, SFT, SAMPLE])
def test_every_suggestion_is_none_or_makes_a_valid_job(tree):
    job = job_with(tree)
    for suggest in (*suggestions.TO_FIT, *suggestions.TO_SHORTEN):
        override = suggest(job)
        if override is not None:
            job_with(job.model_dump(mode="json"), override)


def test_one_override_is_named_if_it_is_enough():
    job = job_with(PPO, "learner.num_workers=8", "rollout.engine.dtype=bfloat16")
    assert suggestions.overrides_that_fit(forecast_of(job, "8xA100-40GB")) == ["learner.zero_stage=3"]


def test_of_several_overrides_only_those_that_it_takes_are_named():
    job = job_with(PPO, "learner.num_workers=8", "learner.micro_batch_tokens=65536", "rollout.prompts_per_step=1024",
                   "learner.zero_stage=1", "data.max_prompt_tokens=512", "rollout.max_new_tokens=512")  # fmt: skip
    current = forecast_of(job, "8xA100-40GB")
    overrides = suggestions.overrides_that_fit(current)
    assert len(overrides) > 1
    tree = job.model_dump(mode="json")
    assert forecast_of(job_with(tree, *overrides), "8xA100-40GB").fits
    for needless in overrides:
        assert not forecast_of(job_with(tree, *(o for o in overrides if o != needless)), "8xA100-40GB").fits


def test_nothing_is_named_if_nothing_is_enough():
    assert suggestions.overrides_that_fit(forecast_of(job_with(PPO), "1xL4")) == []


def test_what_shortens_a_step_is_named_with_its_seconds_the_best_first():
    job = job_with(PPO, "learner.num_workers=8", "learner.zero_stage=3", "rollout.prompts_per_step=256",
                   "learner.micro_batch_tokens=4096", "rollout.num_workers=4")  # fmt: skip
    current = forecast_of(job, "8xH100-80GB")
    shorter = suggestions.overrides_that_shorten(current)
    seconds = [s for _, s in shorter]
    assert shorter
    assert seconds == sorted(seconds)
    assert seconds[-1] < suggestions.WORTHWHILE * current.seconds["step"]
    for override, predicted in shorter:
        changed = forecast_of(job_with(job.model_dump(mode="json"), override), "8xH100-80GB")
        assert changed.seconds["step"] == pytest.approx(predicted)
