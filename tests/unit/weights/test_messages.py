"""Buckets hold the tensors that went into them, bit for bit, and copy none."""

import pickle

import numpy as np
import torch

from rlhf_ray.weights.messages import Bucket, pack, split_into_buckets


def test_buckets_hold_every_tensor_once_and_copy_none():
    named = {f"t{i}": torch.full((i + 1, 8), float(i)) for i in range(9)}
    buckets = list(split_into_buckets(named.items(), size=400))
    assert len(buckets) > 2
    assert all(bucket.num_bytes >= 400 for bucket in buckets[:-1])
    unpacked = [pair for bucket in buckets for pair in bucket.unpack()]
    assert [name for name, _ in unpacked] == list(named)
    assert all(t.data_ptr() == named[n].data_ptr() and torch.equal(t, named[n]) for n, t in unpacked)


def test_a_bucket_comes_before_the_next_tensor_is_asked_for():
    asked = []

    def tensors():
        for name in "abc":
            asked.append(name)
            yield name, torch.zeros(100)

    first = next(split_into_buckets(tensors(), size=400))
    assert (list(first.tensors), asked) == (["a"], ["a"])


def test_the_example_of_three_tensors():
    named = [(str(size), torch.zeros(size, dtype=torch.uint8)) for size in (60, 80, 30)]
    assert [bucket.num_bytes for bucket in split_into_buckets(named, size=100)] == [140, 30]


def test_tensors_come_back_bit_for_bit():
    named = {"x": torch.randn(5, 3).bfloat16(), "y": torch.randn(4, 2).t(), "z": torch.tensor(3.5)}
    unpacked = dict(pack(named).unpack())
    assert unpacked.keys() == named.keys()
    for name, tensor in named.items():
        assert unpacked[name].dtype == tensor.dtype
        assert torch.equal(unpacked[name], tensor)


def test_a_buckets_bytes_leave_the_pickle_as_buffers():
    """Ray shares out-of-band buffers between processes; bytes inside the pickle are copied."""
    buffers = []
    data = pickle.dumps(pack({"x": torch.ones(1 << 16)}), protocol=5, buffer_callback=buffers.append)
    assert len(data) < 1000
    again = pickle.loads(data, buffers=buffers)
    assert isinstance(again, Bucket)
    assert np.array_equal(dict(again.unpack())["x"], np.ones(1 << 16))
