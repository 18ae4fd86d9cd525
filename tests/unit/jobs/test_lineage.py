"""Which stages of a pipeline are done again."""

import json
import os
from pathlib import Path

import pytest

from rlhf_ray.config import apply_overrides, parse
from rlhf_ray.jobs import lineage
from rlhf_ray.jobs.pipeline import resolve_stage
from rlhf_ray.run.directory import RunDir
from tests.helpers import TINY


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "the view"}))
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": "the view", "completion": " was"}))
    model = {"init": TINY, "tokenizer": "toy"}
    pretrain = {"job": "pretrain", "model": model, "data": {"path": str(tmp_path / "a.jsonl")}, "num_steps": 1}
    sft = {
        "job": "sft",
        "model": {"path": "stage:pretrain"},
        "data": {"path": str(tmp_path / "b.jsonl")},
        "num_steps": 1,
    }
    return {"job": "pipeline", "run": {"dir": str(tmp_path / "run")}, "stages": {"pretrain": pretrain, "sft": sft}}


def traced(tree, *overrides):
    """The lineage of each stage."""
    job, done, found = parse(apply_overrides(tree, list(overrides)), "x"), {}, {}
    for name, stage in job.stages.items():
        settled = resolve_stage(job, name, stage)
        found[name] = lineage.trace(settled, Path(job.run.dir), done)
        done[name] = found[name].outputs
    return found


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("stages.sft.learner.lr=0.5", {"sft": "inputs outputs"}),
        ("stages.pretrain.learner.lr=0.5", {"pretrain": "inputs outputs", "sft": "inputs outputs"}),
        ("stages.pretrain.num_steps=9", {"pretrain": "outputs", "sft": "inputs outputs"}),
        ("stages.sft.evaluate.every=2", {"sft": "outputs"}),
        ("run.seed=4", {"pretrain": "inputs outputs", "sft": "inputs outputs"}),
        ("log.every=7", {}),
        ("cluster.num_threads=1", {}),
        ("stages.sft.checkpoint.every=7", {}),
    ],
)
def test_what_changes_a_stage_and_what_its_result(tree, override, changed):
    before, after = traced(tree), traced(tree, override)
    for name in before:
        found = {k for k in ("inputs", "outputs") if getattr(before[name], k) != getattr(after[name], k)}
        assert found == set(changed.get(name, "").split()), name


def test_a_file_with_other_content_changes_the_stages_after_it(tree, tmp_path):
    before = traced(tree)
    os.utime(tmp_path / "a.jsonl", (1, 1))
    assert traced(tree) == before  # its content counts, not its time
    (tmp_path / "b.jsonl").write_text("{}")
    after = traced(tree)
    assert after["pretrain"] == before["pretrain"]
    assert after["sft"].inputs != before["sft"].inputs


def test_a_finished_stages_data_may_be_deleted(tree, tmp_path):
    before = traced(tree)
    job = parse(tree, "x")
    with RunDir(resolve_stage(job, "pretrain", job.stages["pretrain"])) as held:
        held.record("finished", files=before["pretrain"].files)
    (tmp_path / "a.jsonl").unlink()
    assert traced(tree)["pretrain"] == before["pretrain"]


def test_a_stage_of_other_inputs_is_set_aside_and_nothing_is_lost(tmp_path):
    stage = tmp_path / "sft"
    for number in (1, 2):
        stage.mkdir()
        (stage / "manifest.json").write_text(json.dumps({"inputs": "x", "number": number}))
        assert lineage.set_aside(stage, "x") is None
        assert lineage.set_aside(stage, "y") == tmp_path / f"sft.old-{number}"
        assert json.loads((tmp_path / f"sft.old-{number}" / "manifest.json").read_text())["number"] == number
    assert lineage.set_aside(stage, "y") is None
