"""FLOPs by formula: the docstring's example, and that importing them costs nothing."""

import subprocess
import sys

import numpy as np

from rlhf_ray.flops import TRAINING, causal_pairs, forward_flops, head_chunk


def test_the_example_of_four_tokens():
    assert forward_flops(4 * 100, 2 * 8, causal_pairs(4**2)) == 1312


def test_arrays_are_taken_too():
    rows = np.array([1.0, 2.0])
    assert forward_flops(rows * 10, 3, rows * 5).tolist() == [80.0, 160.0]


def test_training_is_three_forward_passes():
    """6 N T without attention."""
    assert TRAINING * forward_flops(7.0 * 5.0, 0.0, 0.0) == 6 * 7 * 5


def test_the_head_takes_more_positions_at_a_time_on_a_gpu():
    assert [head_chunk(vocab_size, on_gpu=False) for vocab_size in (32_000, 152_064)] == [524, 128]
    assert [head_chunk(vocab_size, on_gpu=True) for vocab_size in (32_000, 152_064)] == [4194, 882]


def test_the_formulas_bring_no_torch():
    code = "import sys, rlhf_ray.flops; assert not {'torch', 'ray', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
