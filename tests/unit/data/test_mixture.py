"""Several sources as one dataset: places, columns of their own, and what training draws of them."""

import json

import numpy as np
import pytest

from rlhf_ray.config import ConfigError, DataConfig, parse
from rlhf_ray.data.examples import DataError, load
from rlhf_ray.data.prompts import load_prompts
from rlhf_ray.jobs import preflight
from rlhf_ray.tasks import language_model
from rlhf_ray.toy import world as toy
from tests.helpers import TINY, rl_job


@pytest.fixture
def mix(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n".join(json.dumps({"sentence": f"the view {w}"}) for w in ("was", "had")))
    (tmp_path / "b.csv").write_text("text\nthe staff was great . the price was great\nthe music\nthe style\n")
    return [
        {"path": str(tmp_path / "a.jsonl"), "weight": 3, "columns": {"sentence": "text"}},
        {"path": str(tmp_path / "b.csv"), "formats": {"text": "{text} ."}},
    ]


def test_each_part_has_its_own_columns_and_place(mix, tmp_path):
    rows = load(DataConfig(mix=mix), "data")
    assert [r["text"] for r in rows][1:4:2] == ["the view had", "the music ."]
    assert rows.place(1) == f"{tmp_path}/a.jsonl:3"
    assert rows.place(3) == f"{tmp_path}/b.csv, row 2"
    with pytest.raises(DataError, match=r"b.csv, row 3: no column 'label' .*data.mix.1.columns="):
        rows.require(4, "label")


def test_changed_rows_keep_their_places_and_how_often_they_are_drawn(mix, tmp_path):
    rows = load(DataConfig(mix=mix), "data")
    upper = rows.changed({"text": row["text"].upper()} for row in rows)
    assert [r["text"] for r in upper][1:4:2] == ["THE VIEW HAD", "THE MUSIC ."]
    assert [upper.place(i) for i in range(len(rows))] == [rows.place(i) for i in range(len(rows))]
    assert upper.shares == rows.shares
    assert upper.shares.weights == (3.0, 1.0)


def test_examples_are_drawn_by_the_weights_whatever_became_of_the_rows(mix):
    rows = load(DataConfig(mix=mix), "data")
    made = language_model.prepare(rows, toy.tokenizer(), 4).batch  # long texts are cut into pieces
    assert len(made) > len(rows)
    drawn = rows.shares.sampler(made.example_id, 0).indices(0, 400)
    assert np.mean(made.example_id[drawn] < 2) == 0.75


def test_prompts_are_drawn_by_the_weights():
    config = parse(
        rl_job(
            data={
                "mix": [
                    {"path": "toy:reviews/prompts", "size": 30},
                    {"path": "toy:arithmetic/prompts", "size": 4, "weight": 2},
                ],
                "max_prompt_tokens": 32,
            }
        ),
        "job",
    ).data
    prompts = load_prompts(config, toy.tokenizer(), 128, 8, "data")
    assert len(prompts) == 34
    drawn = prompts.shares.sampler(prompts.example_id, 1).indices(0, 90)
    assert np.bincount(drawn >= 30).tolist() == [30, 60]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "data: path is missing"),
        ({"path": "a.jsonl", "mix": [{"path": "b.jsonl"}]}, "data: path next to mix belongs to no part"),
        ({"size": 3, "mix": [{"path": "b.jsonl"}]}, "data: size next to mix"),
        ({"mix": [{"path": "b.jsonl", "weight": 0}]}, r"data.mix.0.weight: .*greater than 0"),
        ({"mix": [{"path": "b.jsonl", "seed": 1}]}, "data.mix.0: split and seed belong"),
        ({"mix": [{"path": "b.jsonl", "weigth": 1}]}, "did you mean 'weight'"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(data, message):
    with pytest.raises(ConfigError, match=message):
        parse({"job": "pretrain", "model": {"init": TINY, "tokenizer": "toy"}, "data": data, "num_steps": 1}, "job")


def test_balanced_classes_and_weighted_parts_are_two_masters(mix):
    job = {"job": "classify", "model": {"path": "m"}, "data": {"mix": mix}, "sampling": "balanced", "num_steps": 1}
    with pytest.raises(ConfigError, match=r"data.mix or data.sampling both set how often"):
        parse(job, "job")


def test_a_missing_part_is_named_before_anything_runs(mix):
    mix[1]["path"] += ".gone"
    job = {"job": "sft", "model": {"init": TINY, "tokenizer": "toy"}, "data": {"mix": mix}, "num_steps": 1}
    with pytest.raises(DataError, match=r"b.csv.gone: no such file; data.mix.1.path"):
        preflight.check_job(parse(job, "job"))


def test_parts_may_be_files_that_a_pipeline_names_and_what_a_stage_wrote(tmp_path):
    stage = {"job": "sft", "model": {"init": TINY, "tokenizer": "toy"}, "num_steps": 1}
    tree = {
        "job": "pipeline",
        "files": {"own": {"path": "a.jsonl", "columns": {"q": "prompt"}}},
        "stages": {
            "one": {**stage, "data": {"path": "file:own"}},
            "two": {**stage, "data": {"mix": [{"path": "file:own", "weight": 2}, {"path": "stage:one/kept.jsonl"}]}},
        },
    }
    first, second = parse(tree, "job").stages["two"].data.mix
    assert (first.path, first.columns, first.weight, second.path) == (
        "a.jsonl",
        {"q": "prompt"},
        2,
        "stage:one/kept.jsonl",
    )
