"""Evaluations on disk: which a run that goes on keeps."""

import pyarrow as pa

from rlhf_ray.config.jobs import EvaluateRL
from rlhf_ray.run.reader import evaluation_file, evaluation_files
from rlhf_ray.train.evaluation import read_first_and_last, remove_outdated, write_evaluation

PROMPTS = {"path": "toy:reviews/prompts", "split": "heldout", "size": 4, "max_prompt_tokens": 32}


def table(step):
    return pa.table({"example_id": [0], "sample": [0], "prompt": ["a"], "completion": ["b"], "reward": [float(step)]})


def test_a_run_that_goes_on_keeps_the_evaluations_it_will_not_make_again(tmp_path):
    config = EvaluateRL(data=PROMPTS, every=2)
    for step in (0, 2, 4, 1_000_000):
        write_evaluation(evaluation_file(tmp_path, step), table(step), config)
    assert [f["reward"][0].as_py() for f in read_first_and_last(tmp_path)] == [0, 1_000_000]
    remove_outdated(tmp_path, 2, config.model_copy(update={"every": 3, "num_shown": 9}))
    assert [f.stem for f in evaluation_files(tmp_path)] == ["step-000000", "step-000002"]
    remove_outdated(tmp_path, 2, EvaluateRL())
    assert len(evaluation_files(tmp_path)) == 2
    remove_outdated(tmp_path, 2, EvaluateRL(data={**PROMPTS, "size": 3}))
    assert evaluation_files(tmp_path) == []
