"""Forecasts against clusters on which others ran the same training."""

import json

import pytest

from rlhf_ray.config import apply_overrides, parse
from rlhf_ray.plan import forecast
from rlhf_ray.plan.hardware import cluster
from rlhf_ray.plan.requirements import Models, Setting
from rlhf_ray.plan.shape import shape_of
from tests.unit.plan.published import GIANTS


def sft(values, tmp_path, **changes):
    (tmp_path / "config.json").write_text(json.dumps(values))
    job = {"job": "sft", "model": {"path": str(tmp_path), "dtype": "bfloat16", "gradient_checkpointing": True},
           "data": {"path": "rows.jsonl"}, "num_steps": 1}  # fmt: skip
    return parse(apply_overrides(job, [f"{k}={v}" for k, v in changes.items()]), "job")


def on_paper(job, values, gpus, nodes=1):
    on = cluster(gpus, nodes)
    return forecast.forecast(job, Setting(Models(shape_of(values)), on, forecast.lengths(job)))


def test_llama_70b_with_lora_on_eight_h100(tmp_path):
    """PEFT's guide to DeepSpeed (docs/source/accelerate/deepspeed.md): ZeRO-3, rank 8 on all linear layers, 8 x 2,048 tokens,
    checkpointing, bfloat16: 64 GB on each of 8 H100-80GB, measured."""
    values = GIANTS["llama-2-70b"]
    job = sft(values, tmp_path, **{
        "batch_size": 64, "max_length": 2048, "learner.num_workers": 8, "learner.zero_stage": 3, "learner.micro_batch_tokens": 16384,
        "model.lora.rank": 8, "model.lora.alpha": 16,
    })  # fmt: skip
    found = on_paper(job, values, "8xH100-80GB")
    assert found.device_bytes / 1e9 == pytest.approx(64, rel=0.25)
    assert found.fits


@pytest.mark.parametrize(
    ("model", "gpus", "nodes", "ranks", "fits"),
    [
        # verl's "Resource needed" (docs/perf/device_tuning.rst): 7B on 2 H800 with its optimizer offloaded; this project has no offload
        ("qwen2-7b", "2xH800-80GB", 1, 2, False),
        ("qwen2-7b", "4xH800-80GB", 1, 4, True),
        # the same page: 70B on 32 H800
        ("qwen2-72b", "8xH800-80GB", 4, 32, True),
        ("qwen2-72b", "8xH800-80GB", 1, 8, False),
    ],
)
def test_verl_s_smallest_clusters(tmp_path, model, gpus, nodes, ranks, fits):
    job = sft(GIANTS[model], tmp_path, **{
        "batch_size": 256, "max_length": 1536, "learner.num_workers": ranks, "learner.zero_stage": 3, "learner.micro_batch_tokens": 8192,
    })  # fmt: skip
    assert on_paper(job, GIANTS[model], gpus, nodes).fits is fits
