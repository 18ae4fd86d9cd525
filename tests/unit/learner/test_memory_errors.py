"""Exhausted memory becomes one sentence with what would help, and nothing else does."""

import pickle

import numpy as np
import pytest
import torch

from rlhf_ray.batch import from_sequences
from rlhf_ray.config import BadInput, LearnerConfig, ModelConfig
from rlhf_ray.learner.memory_errors import OutOfMemory, explains_memory, is_out_of_memory
from rlhf_ray.learner.worker import LearnerWorker, Role

CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.20 GiB"


class Rank(LearnerWorker):
    """Rank 1 of two, whose updates fail."""

    def __init__(self, error, **model):
        role = Role(name="actor", kind="policy", model=ModelConfig(path="none", **model), lr=1e-5)
        config = LearnerConfig(num_workers=2, zero_stage=2, micro_batch_tokens=64)
        super().__init__(config=config, roles=[role], device="cpu", num_threads=1, deadline_s=60.0)
        self.rank, self.world_size, self.widths, self.error = 1, 2, {"actor": 8}, error

    @explains_memory
    def update(self, batch):
        for _ in self._micro_batches("actor", batch, None):
            raise self.error

    @explains_memory
    def load(self):
        raise self.error


def batch_of(*lengths):
    """Sequences of these lengths."""
    return from_sequences([np.ones(length, np.int32) for length in lengths], group=np.arange(len(lengths)))


def test_the_sentence_has_rank_micro_batch_and_settings():
    with pytest.raises(OutOfMemory) as caught:
        Rank(torch.OutOfMemoryError(CUDA)).update(batch_of(20, 20, 20, 20))
    text = str(caught.value)
    assert "learner rank 1 ran out of memory in update, at a micro-batch of 2 rows and 40 tokens" in text
    assert "Tried to allocate 2.00 GiB" in text
    assert "\n" not in text
    for setting in ("micro_batch_tokens (64)", "gradient_checkpointing", "zero_stage=3", "dtype=bfloat16"):
        assert setting in text, setting
    assert isinstance(caught.value, BadInput)  # one sentence on the command line, without a traceback
    assert str(pickle.loads(pickle.dumps(caught.value))) == text


def test_settings_that_the_job_has_and_a_micro_batch_of_one_row_are_left_out():
    rank = Rank(MemoryError(), dtype="bfloat16", gradient_checkpointing=True)
    with pytest.raises(OutOfMemory, match=r"1 rows and 60 tokens \(MemoryError\)") as caught:
        rank.update(batch_of(60, 60))
    for setting in ("micro_batch_tokens", "gradient_checkpointing", "bfloat16"):
        assert setting not in str(caught.value), setting


def test_outside_of_a_micro_batch_none_is_named():
    rank = Rank(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 96 bytes"))
    with pytest.raises(OutOfMemory, match="ran out of memory in load \\(Default") as caught:
        rank.load()
    assert "micro" not in str(caught.value)


def test_other_errors_pass_as_they_are():
    assert not is_out_of_memory(ValueError("out of memory"))
    with pytest.raises(RuntimeError, match="must match"):
        Rank(RuntimeError("The size of tensor a must match")).load()
