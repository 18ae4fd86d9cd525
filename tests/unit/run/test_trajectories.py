"""Trajectories come back from disk as they were."""

import json

import numpy as np
import pyarrow.parquet as pq

from rlhf_ray.batch import from_sequences
from rlhf_ray.run.trajectories import read_batch, trajectory_file, write_batch


def batch(*lengths):
    tokens = [np.arange(n) for n in lengths]
    return from_sequences(
        tokens,
        response_mask=[t > 1 for t in tokens],
        rewards=np.arange(len(tokens)) / 2,
        reward_parts=np.arange(2 * len(tokens)).reshape(-1, 2),
        seed=np.array([2**63 + n for n in lengths], np.uint64),
    )


def test_trajectories_come_back_as_they_were_with_the_names_of_the_rewards(tmp_path):
    file, rollouts = trajectory_file(tmp_path, 12), batch(3, 5, 2)
    assert file == tmp_path / "trajectories" / "step-000012.parquet"
    write_batch(file, rollouts, ["truth", "length"])
    read = read_batch(file)
    assert read.columns() == rollouts.columns()
    for name in rollouts.columns():
        np.testing.assert_array_equal(getattr(read, name), getattr(rollouts, name), err_msg=name)
        assert getattr(read, name).dtype == getattr(rollouts, name).dtype
    named = pq.read_schema(file).metadata[b"reward_parts"]
    assert json.loads(named) == ["truth", "length"]


def test_trajectories_of_the_same_step_are_replaced_whole(tmp_path):
    file = trajectory_file(tmp_path, 0)
    write_batch(file, batch(3, 5), ["old", "older"])
    write_batch(file, batch(4), ["a", "b"])
    assert read_batch(file).lengths.tolist() == [4]
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")] == ["trajectories/step-000000.parquet"]
