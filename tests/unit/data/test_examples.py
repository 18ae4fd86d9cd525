"""Reading examples: every kind of file, and errors that say where and how to mend."""

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf_ray.config import BadInput, DataConfig, PromptConfig
from rlhf_ray.data.examples import DataError, Rows, find, load, to_table
from rlhf_ray.data.prompts import load_prompts
from rlhf_ray.toy import world as toy

ROWS = [{"text": "a, b", "label": 1}, {"text": 'say "c"', "label": 0}]


def read(path):
    return load(DataConfig(path=str(path)), "data")


def _jsonl(path):
    path.write_text("\n\n".join(json.dumps(r) for r in ROWS) + "\n")


def _csv(path):
    path.write_text('text,label\n"a, b",1\n"say ""c""",0\n')


WRITERS = {
    "x.jsonl": _jsonl,
    "x.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "x.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "x.csv": _csv,
    "x.tsv": lambda path: path.write_text('text\tlabel\na, b\t1\nsay "c"\t0\n'),
}


@pytest.mark.parametrize("name", WRITERS)
def test_each_kind_of_file_gives_the_same_rows(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert read(tmp_path / name) == ROWS


def test_a_saved_dataset_is_read_shard_by_shard(tmp_path):
    for i, row in enumerate(ROWS):
        table = pa.Table.from_pylist([row])
        with pa.ipc.new_stream(tmp_path / f"data-{i:05d}-of-00002.arrow", table.schema) as writer:
            writer.write_table(table)
    assert read(tmp_path) == ROWS


def test_a_tsv_keeps_a_lone_quote(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text('sentence\tlabel\na "quoted word\t1\nnext\t0\n')
    assert [r["sentence"] for r in read(path)] == ['a "quoted word', "next"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "x.jsonl",
            '{"text": "a"}\n\n{"text": oops}\n',
            r"x\.jsonl:3: not JSON \(.* at column 10\); correct or remove",
        ),
        ("x.jsonl", '{"text": "a"}\n["b"]\n', r"x\.jsonl:2: a list, expected an object"),
        ("x.jsonl", "\n\n", r"x\.jsonl: there are no rows"),
        ("x.json", '[{"text": "a"},\n {"text" "b"}]', r"x\.json:2: not JSON .*\.jsonl"),
        ("x.json", '{"text": "a"}', r"x\.json: expected a list of objects"),
        ("x.json", "[]", r"x\.json: there are no rows"),
        ("x.csv", "text,label\na,1,2\n", r"x\.csv: .*Expected 2 columns, got 3"),
        ("x.csv", "", r"x\.csv: .*[Ee]mpty"),
        ("x.parquet", "no parquet", r"x\.parquet: not a Parquet file"),
        ("x.doc", "a", r"x\.doc: unknown kind of file; known are \.jsonl"),
    ],
)
def test_a_bad_file_is_named_with_its_line_and_the_remedy(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file.*toy:TASK"):
        read(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match=r"without \.arrow files; give a file"):
        read(tmp_path)


def test_a_hubs_dataset_needs_its_library_and_has_to_be_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"hf:org/name: needs the datasets library; pip install 'rlhf-ray\[datasets\]'"):
        find(DataConfig(path="hf:org/name"), "data")
    with pytest.raises(DataError, match="needs the datasets library"):
        load(DataConfig(path="hf:org/name:train"), "data")


def test_a_hubs_dataset_is_read_by_its_library(tmp_path, monkeypatch):
    pytest.importorskip("datasets", reason="pip install 'rlhf-ray[datasets]'")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "own").mkdir()
    _jsonl(tmp_path / "own" / "train.jsonl")  # a directory is a dataset to it as a name of the hub is
    rows = load(DataConfig(path=f"hf:{tmp_path}/own:train[:1]"), "data")
    assert rows == ROWS[:1]
    assert rows.place(0) == f"hf:{tmp_path}/own:train[:1], row 1"
    with pytest.raises(DataError, match=r"own:gone: cannot be had \(ValueError: .*the name and the split"):
        load(DataConfig(path=f"hf:{tmp_path}/own:gone"), "data")


def test_data_errors_are_bad_input_and_value_errors():
    assert issubclass(DataError, BadInput)
    assert issubclass(DataError, ValueError)


def test_columns_are_renamed_and_size_is_a_limit(tmp_path):
    _jsonl(tmp_path / "x.jsonl")
    rows = load(DataConfig(path=str(tmp_path / "x.jsonl"), size=1, columns={"text": "prompt"}), "data")
    assert rows == [{"prompt": "a, b", "label": 1}]


def test_renaming_a_column_that_is_not_there_lists_those_that_are(tmp_path):
    _jsonl(tmp_path / "x.jsonl")
    with pytest.raises(
        DataError, match=r"x\.jsonl:1: no column 'sentence' \(it has text, label\); .* ptx_data.columns"
    ):
        load(DataConfig(path=str(tmp_path / "x.jsonl"), columns={"sentence": "text"}), "ptx_data")


def test_load_knows_the_toy_dataset():
    config = DataConfig(path="toy:reviews/sft", split="heldout", size=5, seed=3)
    assert load(config, "data") == toy.generate("reviews/sft", "heldout", 5, 3)
    with pytest.raises(DataError, match=r"data\.path: unknown task 'nonsense'.*reviews/sft"):
        load(DataConfig(path="toy:nonsense"), "data")


@pytest.mark.parametrize("row", [{"text": "a"}, {"text": "a", "prompt": None}])
@pytest.mark.parametrize(("lines", "place"), [([3, 5], "x:5"), (None, "x, row 2")])
def test_require_names_place_and_column(row, lines, place):
    rows = Rows([{"prompt": "a"}, row], "x", lines)
    rows.require(0, "prompt")
    with pytest.raises(DataError, match=rf"{place}: no column 'prompt' \(it has text.*data.columns="):
        rows.require(1, "prompt")


def test_lines_are_those_of_the_file_and_end_only_at_a_line_end(tmp_path):
    texts = ["a\u2028b\u0085c\x0cd", "e"]
    lines = [json.dumps({"text": t}, ensure_ascii=False) for t in texts]
    (tmp_path / "x.jsonl").write_bytes(f"\ufeff{lines[0]}\r\n\r\n{lines[1]}\r\n".encode())
    rows = read(tmp_path / "x.jsonl")
    assert [r["text"] for r in rows] == texts
    assert rows.place(1) == f"{tmp_path}/x.jsonl:3"


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.tsv"])
def test_bytes_that_are_not_utf8_are_named_with_their_line(tmp_path, name):
    WRITERS[name](tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole.replace(b"a, b", b"a\xe9 b"))
    line = whole[: whole.index(b"a, b")].count(b"\n") + 1
    with pytest.raises(DataError, match=rf"{name}:{line}: not UTF-8 \(byte 0xe9\); save"):
        read(tmp_path / name)


def test_a_table_has_every_column_that_any_row_has():
    rows = Rows([{"prompt": "a"}, {"prompt": "b", "x": 9}, {"prompt": "c", "answer": "1", "example_id": "z"}], "x")
    assert to_table(rows, [0, 2]).to_pylist() == [
        {"prompt": "a", "answer": None, "example_id": 0},
        {"prompt": "c", "answer": "1", "example_id": 2},
    ]


def test_a_column_of_two_types_is_named_with_both_places():
    rows = Rows([{"answer": None}, {"answer": 7}, {"answer": "7"}], "x.jsonl", [1, 2, 4])
    with pytest.raises(DataError, match=r"column 'answer' is int at x.jsonl:2, str at x.jsonl:4: .*one type"):
        to_table(rows, [0, 1, 2], ["answer"])
    with pytest.raises(DataError, match="column 'answer' is int at x"):
        to_table(Rows([{"answer": 2**70}], "x"), [0], ["answer"])


TOOLS = [{"default": 1}, {"default": "s"}, None]


def odd_jsonl(folder):
    """Column tools, whose nested values have two types."""
    file = folder / "odd.jsonl"
    rows = [{"prompt": f"the view {i}", "answer": "1", "tools": tools} for i, tools in enumerate(TOOLS)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def odd_parquet(folder):
    """Column tools, a map, whose entries are pairs of different types."""
    file = folder / "odd.parquet"
    tools = pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int64()))
    pq.write_table(pa.table({"prompt": ["the view"] * 3, "answer": ["1"] * 3, "tools": tools}), file)
    return file


@pytest.mark.parametrize("write", [odd_jsonl, odd_parquet])
def test_a_column_that_nobody_reads_does_not_stop_a_job(tmp_path, write, caplog):
    caplog.set_level("INFO", logger="rlhf_ray")
    config = PromptConfig(path=str(write(tmp_path)), max_prompt_tokens=32)
    rows = load_prompts(config, toy.tokenizer(), 128, 8, "data", columns=["prompt", "answer"]).rows
    assert rows.column_names == ["prompt", "answer", "example_id"]
    assert "data: column 'tools' is left out" in caplog.text
    with pytest.raises(DataError, match=r"column 'tools' is .* at .*odd"):
        load_prompts(config, toy.tokenizer(), 128, 8, "data", columns=["tools"])
