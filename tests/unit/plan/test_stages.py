"""Seconds of stages against hand numbers, and against optimizer steps that were measured on a GPU."""

import numpy as np
import pytest

from rlhf_ray.plan import stages
from rlhf_ray.plan.hardware import cluster
from rlhf_ray.plan.shape import shape_of
from tests.benchmarks import rollout_vs_generate
from tests.unit.plan.published import GIANTS, a_benchmarks_shape


def test_live_rows_are_those_of_a_queue_by_hand():
    assert stages.live_rows([3, 1, 2], 2).tolist() == [2, 2, 2]
    assert stages.live_rows([4, 1, 1, 1, 5], 2).tolist() == [2, 2, 2, 2, 1, 1, 1, 1]
    assert stages.live_rows([2, 2], 8).tolist() == [2, 2]


def test_a_decode_step_is_bound_by_memory_and_then_by_products():
    """7 B in bfloat16 on an H200: 15.2 GB of weights at 4.8 TB/s; the crossing is where rows x 2 N / F passes it (206 rows)."""
    s, device = shape_of(GIANTS["qwen2-7b"]), cluster("H200").device
    e = stages.efficiency(device)
    rows = np.array([1.0, 4096.0])
    few, many = stages.decode_step(s, rows, np.zeros(2), "bfloat16", device, 1, 0.0)
    used = s.body + s.head
    assert few == pytest.approx(2 * used / (4.8e12 * e.decode_bytes))
    assert many == pytest.approx(4096 * 2 * used / (989e12 * e.share(e.decode_flops, 3584)))


def test_training_is_three_forward_passes_and_recomputation_a_fourth():
    s, on = shape_of(GIANTS["qwen2-7b"]), cluster("8xH100-80GB")
    samples = stages.Samples(1.0, 1000, 0, 1000)
    forward = stages.forward_pass_flops(s, samples.tokens, samples.squared_lengths, samples.scored)
    assert forward == 2 * (s.body + s.head) * 1000
    e = stages.efficiency(on.device)
    plain, again = (stages.Learning(s, s.num_parameters, 0.0, "bfloat16", 1, 1, c, 1 << 20) for c in (False, True))
    seconds = [stages.updating(m, samples, 1, on) - e.update_s for m in (plain, again)]
    assert seconds[0] == pytest.approx(3 * forward / (989e12 * e.share(e.learn, 3584)))
    assert seconds[1] == pytest.approx(seconds[0] * 4 / 3)


def test_each_optimizer_step_has_micro_batches_of_its_own():
    """Four steps of one and a half micro-batches are eight, not six: at ZeRO-2 each reduces the gradients once."""
    s, on = shape_of(GIANTS["qwen2-7b"]), cluster("8xH100-80GB")
    num = float(s.num_parameters)
    learning = stages.Learning(s, num, num, "bfloat16", 2, 8, False, 1000)
    alone = stages.Learning(s, num, num, "bfloat16", 1, 8, False, 1000)
    samples = stages.Samples(96.0, 8 * 6000.0, 0.0, 0.0)
    difference = stages.updating(learning, samples, 4, on) - stages.updating(alone, samples, 4, on)
    exchange = 2 * num * 7 / 8 / (0.7 * on.device.link)
    assert difference == pytest.approx((8 + 4 - 2 * 4) * exchange)  # ZeRO-1 has two exchanges a step


ON_H200 = [  # shape, lengths, seconds of an optimizer step on one H200 (LOG.md, 2026-11-27); no constant was fitted to them
    ("0.5B", "equal", 2.782), ("0.5B", "skewed", 0.872), ("1.5B", "equal", 5.710), ("1.5B", "skewed", 1.635),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "seconds"), ON_H200)
def test_learner_steps_that_were_measured_on_a_gpu(name, kind, seconds):
    model, sizes = a_benchmarks_shape(name), rollout_vs_generate.lengths(kind, 256, 1008)
    whole = sizes + 16.0
    samples = stages.Samples(256, whole.sum(), (whole**2).sum(), float(sizes.sum()))
    num = float(model.num_parameters)
    learning = stages.Learning(model, num, num, "bfloat16", 1, 1, False, 32768)
    assert stages.updating(learning, samples, 1, cluster("1xH200")) == pytest.approx(seconds, rel=0.25)
