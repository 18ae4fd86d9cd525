"""What `dtype: auto` means on a device."""

import pytest

from rlhf_ray.config import parse, resolve_dtype, resolve_dtypes
from rlhf_ray.jobs.kinds import kind_of
from rlhf_ray.plan.requirements import Models, reward
from rlhf_ray.plan.shape import shape_of
from tests.helpers import TINY, rl_job


@pytest.mark.parametrize(
    ("dtype", "device", "resolved"),
    [
        ("auto", "cuda", "bfloat16"), ("auto", "cuda:3", "bfloat16"), ("auto", "cpu", "float32"),
        ("float32", "cuda", "float32"), ("bfloat16", "cpu", "bfloat16"),
    ],
)  # fmt: skip
def test_auto_depends_on_the_device_and_a_given_dtype_does_not(dtype, device, resolved):
    assert resolve_dtype(dtype, device) == resolved


def test_every_dtype_of_a_job_is_resolved():
    terms = [
        {"name": "rm", "type": "model", "path": "a/b"},
        {"name": "lm", "type": "likelihood", "path": "a/b", "dtype": "float32"},
    ]
    job = parse(rl_job(rewards={"terms": terms}), "job")
    assert (job.model.dtype, job.rollout.engine.dtype, job.rewards.terms[0].dtype) == ("auto",) * 3
    on_gpu = resolve_dtypes(job, "cuda")
    assert (on_gpu.model.dtype, on_gpu.rollout.engine.dtype) == ("bfloat16", "bfloat16")
    assert [term.dtype for term in on_gpu.rewards.terms] == ["bfloat16", "float32"]
    on_cpu = resolve_dtypes(job, "cpu")
    assert (on_cpu.model.dtype, on_cpu.rollout.engine.dtype, on_cpu.rewards.terms[0].dtype) == ("float32",) * 3
    assert resolve_dtypes(on_cpu, "cuda") == on_cpu


def test_plan_counts_a_reward_model_in_the_dtype_of_its_device():
    job = parse(rl_job(rewards={"terms": [{"name": "rm", "type": "model", "path": "a/b"}]}), "job")
    shape = shape_of({**TINY, "vocab_size": 100})
    on_cpu, on_gpu = (
        reward(Models(shape, rewards=(shape,)), kind_of(job).needs(resolve_dtypes(job, device)))
        for device in ("cpu", "cuda")
    )
    assert on_cpu.resident["reward models"] == 4.0 * shape.scalar_parameters
    assert on_gpu.resident["reward models"] == 2.0 * shape.scalar_parameters
