"""Memory of a shared GPU, stage by stage: who is awake decides whether a job fits."""

import dataclasses

import pytest

from rlhf_ray.config import apply_overrides, parse
from rlhf_ray.plan import suggestions
from rlhf_ray.plan.forecast import forecast, lengths
from rlhf_ray.plan.hardware import cluster
from rlhf_ray.plan.model_shapes import job_models
from rlhf_ray.plan.requirements import Setting
from tests.helpers import ROOT, rl_job

MODEL = str(ROOT / "tests" / "models" / "Qwen2.5-7B-Instruct")
GRPO = apply_overrides(
    rl_job(model={"path": MODEL, "gradient_checkpointing": True}, algorithm={"type": "grpo", "group_size": 8}),
    [
        "data.max_prompt_tokens=1024", "rollout.max_new_tokens=8192", "rollout.prompts_per_step=128",
        "rollout.num_workers=8", "rollout.engine={type: vllm, memory_fraction: 0.5}", "learner.num_workers=8",
        "learner.zero_stage=2", "learner.micro_batch_tokens=16384", "algorithm.kl.coef=0.01", "cluster.device=auto",
    ],
)  # fmt: skip


def forecast_of(*overrides):
    job = parse(apply_overrides(GRPO, list(overrides)), "job")
    models = job_models(job, {})
    assert models is not None
    return forecast(job, Setting(models=models, cluster=cluster("8xH100-80GB"), lengths=lengths(job)))


def test_a_7b_job_whose_learner_stays_awake_next_to_vllm_does_not_fit():
    """All of the learner's states and half of the GPU for vLLM are there together in the sync and the rollout."""
    estimate = forecast_of()
    (gpu,) = estimate.gpus
    assert not estimate.fits
    assert gpu.fullest_stage == "sync"
    assert gpu.peak > estimate.setting.cluster.device.memory


def test_it_fits_with_an_offload_that_plan_names():
    for offload in ("optimizer", "all"):
        assert forecast_of(f"learner.offload={offload}").fits
    assert suggestions.overrides_that_fit(forecast_of()) == ["learner.offload=optimizer"]


def test_what_sleeps_is_counted_on_the_host():
    asleep = {offload: forecast_of(f"learner.offload={offload}").host_bytes for offload in ("none", "optimizer", "all")}
    num_parameters = forecast_of().setting.models.policy.num_parameters
    assert asleep["optimizer"] - asleep["none"] == pytest.approx(12 * num_parameters, rel=0.1)  # all 8 ranks together
    assert asleep["all"] - asleep["optimizer"] == pytest.approx(8 * 4 * num_parameters, rel=0.1)  # weights, reference


def test_a_reward_model_is_awake_only_in_rollouts_and_evaluations():
    term = f"rewards.terms=[{{name: model, type: model, path: {MODEL}}}]"
    with_model = forecast_of("learner.offload=all", "rewards.num_workers=8", term).gpus[0].stage_bytes
    without = forecast_of("learner.offload=all").gpus[0].stage_bytes
    weights = 14.2 * 2**30
    for stage, count in with_model.items():
        assert (count - without[stage] > weights) is (stage in ("rollout", "evaluate"))


def test_reward_models_on_the_cpus_of_a_gpu_node_are_counted_there():
    """Whole and in float32, since `dtype: auto` is that on a CPU."""
    term = f"rewards.terms=[{{name: model, type: model, path: {MODEL}}}]"
    on_cpu = forecast_of("rewards.num_workers=2", "cluster.gpus.reward=0", term)
    weights = 4 * on_cpu.setting.models.rewards[0].scalar_parameters
    assert on_cpu.host_bytes - forecast_of("rewards.num_workers=2").host_bytes > 2 * weights


def test_activations_count_with_what_the_allocator_reserves(monkeypatch):
    """The reserved memory is counted where the learner works, and not in the rollout, before which it is given back."""
    from rlhf_ray.plan import memory

    reserved = forecast_of().gpus[0].stage_bytes
    monkeypatch.setattr(memory, "RESERVED", 1.0)
    allocated = forecast_of().gpus[0].stage_bytes
    assert reserved["learn"] > allocated["learn"]
    assert reserved["annotate"] > allocated["annotate"]
    assert reserved["rollout"] == allocated["rollout"]


def test_a_job_fits_if_its_fullest_stage_does():
    estimate = forecast_of("learner.offload=all")
    assert estimate.device_bytes == max(estimate.gpus[0].stage_bytes.values())
    assert not dataclasses.replace(estimate, device_bytes=1.01 * estimate.setting.cluster.device.memory).fits
