"""Every preset fits the hardware that it is for, by `rlhf-ray plan`. Shapes are from config.json files in tests/models."""

import pytest

from rlhf_ray.config import load_job
from rlhf_ray.plan.hardware import cluster
from rlhf_ray.plan.text import answer
from tests.helpers import PRESETS, ROOT

MODELS = ROOT / "tests" / "models"
HARDWARE = {
    "qwen2.5_0.5b_grpo_lora": ("1xRTX4090", 1),
    "qwen2.5_0.5b_grpo": ("1xRTX4090", 1),
    "qwen2.5_7b_ppo": ("8xH100-80GB", 1),
    "qwen2.5_7b_ppo_separate": ("8xH100-80GB", 1),
    "qwen3_8b_grpo": ("8xH100-80GB", 1),
    "qwen2.5_32b_grpo": ("8xH100-80GB", 2),
    "llama3.1_70b_grpo": ("8xH100-80GB", 8),
}
LEAST_MARGIN = 0.05
WARNINGS = ("no:", "no estimate", "within the error", "warning", "unknown")


def planned_lines(name):
    """What `plan` prints of a preset for its hardware, and its verdict."""
    job = load_job(PRESETS[name])
    overrides = [f"model.path={MODELS / job.model.path.rpartition('/')[2]}"]
    if job.rewards.terms[0].type == "model":
        overrides.append(f"rewards.terms.0.path={MODELS / 'Qwen2.5-7B-Instruct'}")
    gpus, nodes = HARDWARE[name]
    verdict = answer(load_job(PRESETS[name], overrides), cluster(gpus, nodes))
    return verdict.lines, verdict.yes


@pytest.mark.parametrize("name", sorted(HARDWARE))
def test_a_preset_fits_its_hardware_with_room_to_spare_and_no_warning(name):
    lines, fits = planned_lines(name)
    assert fits
    assert not [line for line in lines if any(warning in line for warning in WARNINGS)]
    spare = float(lines[-1].removeprefix("yes: it fits, with ").partition("%")[0]) / 100
    assert spare >= LEAST_MARGIN


def test_every_preset_has_hardware_and_says_that_it_was_never_run():
    assert set(PRESETS) == set(HARDWARE)
    for name, file in PRESETS.items():
        assert "never run" in file.read_text().splitlines()[0]
        assert f"presets/{file.name}" in (ROOT / "jobs" / "README.md").read_text(), name
