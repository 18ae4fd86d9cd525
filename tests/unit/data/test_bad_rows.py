"""Bad input for each kind of file and each job: what is said names the place and what is there."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf_ray.config import DataConfig, parse
from rlhf_ray.data import check
from rlhf_ray.data.examples import DataError, Rows, load
from rlhf_ray.tasks.registry import task_kind
from rlhf_ray.toy import world as toy
from tests.helpers import TINY

STRIDE = {"stride": 8}
QUESTION = {"question": "was the view", "context": "the view was great"}
GREAT = ["great"]
PAIR = {"prompt": "the view", "chosen": " was great", "rejected": " was awful"}
EMPTY = {
    "x.jsonl": "\n",
    "x.json": "[]",
    "x.csv": "text,label\n",
    "x.tsv": "text\tlabel\n",
    "x.txt": "\n\n",
    "squad.json": '{"data": []}',
}


def build(kind, rows, **more):
    job = {
        "job": kind,
        "model": {"init": TINY, "tokenizer": "toy"},
        "data": {"path": "x"},
        "num_steps": 1,
        "max_length": 64,
    }
    job = parse({**job, **more}, "job")
    given = Rows(rows, "x.jsonl", range(1, len(rows) + 1))
    return task_kind(job).build(job, given, None, toy.tokenizer())


@pytest.mark.parametrize(
    ("kind", "row", "more", "message"),
    [
        ("pretrain", {"body": "a"}, {}, r"x.jsonl:2: no column 'text' \(it has body\); rename one with data.columns="),
        ("sft", {"prompt": "a", "answer": "b"}, {}, r"x.jsonl:2: no column 'completion' \(it has prompt, answer\)"),
        ("reward", {"prompt": "a", "good": "b"}, {}, r"x.jsonl:2: no column 'chosen' \(it has prompt, good\)"),
        ("reward", {**PAIR, "rejected": PAIR["chosen"]}, {}, "x.jsonl:2: chosen and rejected are the same"),
        ("dpo", {**PAIR, "rejected": PAIR["chosen"]}, {}, "x.jsonl:2: chosen and rejected are the same"),
        ("reward", {"text": "a", "label": 2}, {"objective": "labelled"}, "x.jsonl:2: label is 2, expected 0 or 1"),
        ("reward", {"text": "a", "score": "9"}, {"objective": "scores"}, "x.jsonl:2: score is '9', expected a number"),
        (
            "classify",
            {"text": "a", "label": "odd"},
            {"labels": ["good", "bad"]},
            "x.jsonl:2: label is 'odd', expected one of good, bad",
        ),
        ("classify", {"text": "a"}, {"labels": ["good", "bad"]}, r"x.jsonl:2: no column 'label' \(it has text\)"),
        (
            "tag",
            {"words": ["a"], "tags": ["odd"]},
            {"labels": ["part", "none"]},
            "x.jsonl:2: tag is 'odd', expected one of part, none",
        ),
        ("tag", {"words": ["a", "b"], "tags": ["none"]}, {"labels": ["part", "none"]}, "x.jsonl:2: 2 words and 1 tags"),
        (
            "qa",
            {**QUESTION, "answers": {"text": ["awful"], "answer_start": [13]}},
            STRIDE,
            "x.jsonl:2: the answer 'awful' is not at char",
        ),
        (
            "qa",
            {**QUESTION, "answers": {"text": GREAT, "answer_start": []}},
            STRIDE,
            "x.jsonl:2: answers has text .*lists of one length",
        ),
        (
            "qa",
            {**QUESTION, "answers": {"text": GREAT, "answer_start": ["13"]}},
            STRIDE,
            "x.jsonl:2: answer_start is '13'",
        ),
        ("qa", {**QUESTION, "answers": "great"}, STRIDE, "x.jsonl:2: answers is 'great', expected"),
    ],
)
def test_a_row_that_does_not_fit_its_job_is_named(kind, row, more, message):
    good = {
        "text": "a",
        "completion": "b",
        "score": 1,
        "words": ["a"],
        "tags": ["none"],
        **PAIR,
        **QUESTION,
        "label": 1 if kind == "reward" else "good",
        "answers": {"text": GREAT, "answer_start": [13]},
    }
    with pytest.raises(DataError, match=message):
        build(kind, [good, row], **more)


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_split_is_refused_whatever_its_kind(tmp_path, name):
    (tmp_path / name).write_text(EMPTY[name])
    with pytest.raises(DataError, match=rf"{name}: there are no rows in it"):
        load(DataConfig(path=str(tmp_path / name)), "evaluate.data")


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
def test_an_empty_table_and_text_that_is_bytes_are_refused(tmp_path, name):
    def write(table):
        if name.endswith("parquet"):
            pq.write_table(table, tmp_path / name)
        else:
            with pa.OSFile(str(tmp_path / name), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)

    write(pa.table({"text": pa.array([], pa.string())}))
    with pytest.raises(DataError, match=rf"{name}: there are no rows in it"):
        load(DataConfig(path=str(tmp_path / name)), "data")
    write(pa.table({"text": ["a", "b"], "raw": [b"a", b"\xff"]}))
    rows = load(DataConfig(path=str(tmp_path / name), columns={"text": "x", "raw": "text"}), "data")
    with pytest.raises(DataError, match=rf"{name}, row 1: column 'text' is bytes, expected a string"):
        build_text(rows)


def build_text(rows):
    job = parse(
        {"job": "pretrain", "model": {"init": TINY, "tokenizer": "toy"}, "data": {"path": "x"}, "num_steps": 1}, "job"
    )
    return task_kind(job).build(job, rows, None, toy.tokenizer())


@pytest.mark.parametrize("second", [False, True])
def test_text_files_that_are_not_utf8_are_named_with_their_line(tmp_path, second):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\n" if second else b"one\nt\xe9o\n")
    (tmp_path / "b.txt").write_bytes(b"eins\nzw\xe9i\n")
    parallel = str(tmp_path / "b.txt") if second else None
    with pytest.raises(DataError, match=rf"{'b' if second else 'a'}.txt:2: not UTF-8 \(byte 0xe9\)"):
        load(DataConfig(path=str(tmp_path / "a.txt"), parallel=parallel), "data")


def test_a_pair_is_too_long_where_a_side_is_and_tags_are_counted():
    rows = [{**PAIR, "tags": ["a", "b"]}, {**PAIR, "rejected": " was not great", "tags": ["b"]}]
    said = "\n".join(check.lines(Rows(rows, "x"), toy.tokenizer(), {"row": 5}))
    assert "a whole sequence: median 5, 5 to 95 % 5 to 5, most 6 tokens; 1 rows exceed 5" in said
    assert "tags: b 2 (67%), a 1 (33%)" in said
