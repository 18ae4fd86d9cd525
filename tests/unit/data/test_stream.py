"""Data larger than memory: the same Batch as of a dataset held whole, mapped from files, made in bounded memory."""

import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from rlhf_ray.config import ConfigError, PretrainJob, RewardJob, TrainingData, parse
from rlhf_ray.data import examples, files
from rlhf_ray.data.examples import DataError, load
from rlhf_ray.data.stream import Stream
from rlhf_ray.tasks import language_model
from rlhf_ray.tasks.registry import task_kind
from rlhf_ray.toy import world as toy
from tests.helpers import TINY, rl_job

TOKENIZER = toy.tokenizer()
MODEL = {"init": TINY, "tokenizer": "toy"}


def table(count):
    return pa.table({"text": [r["text"] for r in toy.generate("reviews/text", "train", count, 0)]})


def _arrow(given, path):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, given.schema) as writer:
        writer.write_table(given, max_chunksize=11)


WRITERS = {
    "x.jsonl": lambda given, path: path.write_text("\n".join(map(json.dumps, given.to_pylist()))),
    "x.txt": lambda given, path: path.write_text("\n".join(given["text"].to_pylist())),
    "x.csv": lambda given, path: pa.csv.write_csv(given, path),
    "x.parquet": lambda given, path: pq.write_table(given, path),
    "x.arrow": _arrow,
}


def make(rows):
    return language_model.prepare(rows, TOKENIZER, 16)


def assert_same(ours, theirs):
    assert ours.columns() == theirs.columns()
    for name in ours.columns():
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)


@pytest.mark.parametrize("name", WRITERS)
def test_a_streamed_dataset_is_the_one_held_whole(tmp_path, monkeypatch, name):
    monkeypatch.setattr(examples, "BLOCK", 7)
    WRITERS[name](table(40), tmp_path / name)
    data = TrainingData(path=str(tmp_path / name), size=38, formats={"text": "{text} ."}, stream=True)
    rows = Stream(data, "data", tmp_path)
    assert_same(rows.prepare(make, "key").batch, make(load(data, "data")).batch)
    assert rows.prepare(make, "key").num_rows == 38


def test_a_streamed_mixture_of_pairs_is_the_one_held_whole(tmp_path, monkeypatch, notices):
    """Groups, examples, shares and what was left out, over blocks and parts; one block has nothing that fits."""
    monkeypatch.setattr(examples, "BLOCK", 4)
    rows = toy.generate("reviews/pairs", "train", 14, 1)
    for row in rows[4:8]:
        row["prompt"] *= 20
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    job = RewardJob.model_validate(
        {
            "model": MODEL,
            "num_steps": 1,
            "max_length": 64,
            "data": {
                "stream": True,
                "mix": [{"path": "toy:reviews/pairs", "size": 9}, {"path": str(tmp_path / "p.jsonl"), "weight": 3}],
            },
        }
    )
    ours = task_kind(job).build(job, Stream(job.data, "data", tmp_path), None, TOKENIZER)
    whole = task_kind(job).build(job, load(job.data, "data"), None, TOKENIZER)
    assert_same(ours.data.train, whole.data.train)
    assert ours.data.shares == whole.data.shares
    assert [n for n in notices if "left out" in n] == [
        "data: 4 of 23 examples are longer than max_length 64, left out"
    ] * 2
    assert len(ours.data.train) == 2 * (23 - 4)
    assert ours.sampler(3).indices(5, 50).tolist() == whole.sampler(3).indices(5, 50).tolist()


def test_tokens_are_kept_until_the_key_or_a_file_changes(tmp_path):
    WRITERS["x.jsonl"](table(5), tmp_path / "x.jsonl")
    data = TrainingData(path=str(tmp_path / "x.jsonl"), stream=True)
    made = []

    def counted(rows):
        made.append(len(rows))
        return make(rows)

    first = Stream(data, "data", tmp_path).prepare(counted, "key")
    again = Stream(data, "data", tmp_path).prepare(counted, "key")
    assert made == [5]
    assert_same(again.batch, first.batch)
    Stream(data, "data", tmp_path).prepare(counted, "other")
    WRITERS["x.jsonl"](table(6), tmp_path / "x.jsonl")
    Stream(data, "data", tmp_path).prepare(counted, "other")
    assert made == [5, 5, 6]
    assert len(list(tmp_path.glob("tokens-*"))) == 1  # what is of no use any more is gone


def test_what_was_begun_and_not_finished_is_begun_anew(tmp_path):
    WRITERS["x.jsonl"](table(2500), tmp_path / "x.jsonl")
    lines = (tmp_path / "x.jsonl").read_text().split("\n")
    (tmp_path / "x.jsonl").write_text("\n".join([*lines[:2300], '{"text": oops}', *lines[2301:]]))
    data = TrainingData(path=str(tmp_path / "x.jsonl"), stream=True)
    with pytest.raises(DataError, match=r"x\.jsonl:2301: not JSON"):
        Stream(data, "data", tmp_path).prepare(make, "key")
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    assert len(np.unique(Stream(data, "data", tmp_path).prepare(make, "key").batch.example_id)) == 2500


def test_a_bad_row_of_a_later_block_has_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "BLOCK", 7)
    pq.write_table(pa.table({"text": ["the view"] * 17 + [" "]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet, row 18: column 'text' is empty"):
        Stream(TrainingData(path=str(tmp_path / "x.parquet"), stream=True), "data", tmp_path).prepare(make, "key")


@pytest.mark.parametrize("name", WRITERS)
def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch, name):
    """Four times the rows take no more of it: what Python, numpy and Arrow allocate is counted, mapped files are not."""
    monkeypatch.setattr(examples, "BLOCK", 50)
    monkeypatch.setattr(files, "SLICE", 50)
    monkeypatch.setattr(files, "CSV_BLOCK", 1 << 10)
    peaks, once = [], table(50)
    for count in (500, 2000):
        path, most = tmp_path / f"{count}{name}", 0
        WRITERS[name](pa.concat_tables([once] * (count // 50)), path)
        data = TrainingData(path=str(path), stream=True)
        before = pa.total_allocated_bytes()

        def watched(rows, before=before):
            nonlocal most
            most = max(most, pa.total_allocated_bytes() - before)
            return make(rows)

        tracemalloc.start()
        made = Stream(data, "data", tmp_path).prepare(watched, "key")
        peaks.append(tracemalloc.get_traced_memory()[1] + most)
        tracemalloc.stop()
        assert len(np.unique(made.batch.example_id)) == count
    assert peaks[1] < 1.25 * peaks[0]  # the collector's timing is a tenth; the 1,500 rows alone would double it


def test_one_json_value_cannot_be_streamed(tmp_path):
    with pytest.raises(DataError, match=r"x\.json: is one JSON value.*\.jsonl"):
        Stream(TrainingData(path=str(tmp_path / "x.json"), stream=True), "data", tmp_path)


def test_only_training_data_of_language_models_and_rewards_is_streamed():
    assert not PretrainJob.model_validate({"model": MODEL, "data": {"path": "a"}, "num_steps": 1}).data.stream
    with pytest.raises(ConfigError, match="unknown key 'stream'"):
        parse(rl_job(data={"path": "toy:reviews/prompts", "stream": True}), "job")
