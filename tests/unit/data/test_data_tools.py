"""Redaction, reports on data, and the formats that make columns of others."""

import json
import subprocess
import sys
from collections import Counter

import pyarrow as pa
import pytest

from rlhf_ray.cli import main
from rlhf_ray.config import DataConfig
from rlhf_ray.data import check, redact
from rlhf_ray.data.examples import DataError, Rows, load
from rlhf_ray.jobs.data_report import data_report
from rlhf_ray.toy import world as toy
from tests.helpers import ROOT, rl_job

FOUND = {
    "email": ["write to Ann.Lee+x@mail.example.org now", "a_b@c-d.co"],
    "phone": ["call +49 30 1234567", "(030) 123 4567", "0301/2345678"],
    "card": ["4111 1111 1111 1111", "5500-0000-0000-0004"],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432"],
    "ip": ["at 192.168.0.1 today"],
    "key": ["sk-abcdefghijklmnop1234", "ghp_ABCDEFGHIJKLMNOP1234", "-----BEGIN RSA PRIVATE KEY-----"],
}
LEFT = [
    "in 1999 there were 12345 of 7",
    "4111 1111 1111 1112",
    "XY11 ABCD EFGH IJKL MNOP",
    "999.1.1.1",
    "a @ b",
    "3.14159265",
]


@pytest.mark.parametrize(("kind", "text"), [(k, t) for k, texts in FOUND.items() for t in texts])
def test_personal_data_is_replaced_and_counted(kind, text):
    counts = Counter()
    found = redact.text(text, redact.PATTERNS, counts)
    assert f"[{kind.upper()}]" in found
    assert counts == {kind: 1}
    others = [k for k in redact.PATTERNS if k != kind]
    if kind not in ("card", "phone", "iban"):  # their digits may look like each other's
        assert redact.text(text, others, Counter()) == text


def test_a_private_key_goes_with_its_body():
    key = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg\n-----END PRIVATE KEY-----"
    assert redact.text(f"a {key} b", ["key"], Counter()) == "a [KEY] b"
    assert redact.text(f"a {key[:40]}", ["key"], Counter()) == "a [KEY]"  # cut off: nothing of it stays


@pytest.mark.parametrize("text", LEFT)
def test_what_only_looks_like_it_stays(text):
    assert redact.text(text, redact.PATTERNS, Counter()) == text


def test_texts_in_lists_and_messages_are_redacted_too(tmp_path, notices):
    row = {"prompt": [{"role": "user", "content": "I am a@b.org"}], "n": 1, "tags": ["c@d.org"]}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    (found,) = load(DataConfig(path=str(tmp_path / "x.jsonl"), redact=["email", "ip"]), "data")
    assert found == {"prompt": [{"role": "user", "content": "I am [EMAIL]"}], "n": 1, "tags": ["[EMAIL]"]}
    assert notices == ["data: redacted 2 email"]


def test_columns_are_made_of_others(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"q": "why", "a": 7}))
    formats = {"prompt": "Q: {question} A:", "completion": " {a}"}
    config = DataConfig(path=str(tmp_path / "x.jsonl"), columns={"q": "question"}, formats=formats)
    (row,) = load(config, "data")
    assert (row["prompt"], row["completion"]) == ("Q: why A:", " 7")
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "{question}"}]
    config = DataConfig(path=str(tmp_path / "x.jsonl"), columns={"q": "question"}, formats={"prompt": talk})
    assert load(config, "data")[0]["prompt"] == [talk[0], {"role": "user", "content": "why"}]
    with pytest.raises(DataError, match=r"x.jsonl:1: formats does not fit the row \(KeyError: 'b'\), which has q, a"):
        load(DataConfig(path=str(tmp_path / "x.jsonl"), formats={"prompt": "{b}"}), "data")


def test_two_text_files_are_one_dataset(tmp_path):
    (tmp_path / "a.en").write_text("one\ntwo\n")
    (tmp_path / "a.de").write_text("eins\nzwei\n")
    rows = load(DataConfig(path=str(tmp_path / "a.en"), parallel=str(tmp_path / "a.de")), "data")
    assert rows == [{"source": "one", "target": "eins"}, {"source": "two", "target": "zwei"}]
    assert rows.place(1).endswith("a.en:2")
    (tmp_path / "a.de").write_text("eins\n")
    with pytest.raises(DataError, match=r"a.en has 2 lines and .*a.de 1"):
        load(DataConfig(path=str(tmp_path / "a.en"), parallel=str(tmp_path / "a.de")), "data")


def test_text_arrow_and_squad_files_are_read(tmp_path):
    (tmp_path / "x.txt").write_text("one\n\ntwo\n")
    rows = load(DataConfig(path=str(tmp_path / "x.txt")), "data")
    assert rows == [{"text": "one"}, {"text": "two"}]
    assert rows.place(1).endswith("x.txt:3")
    with (
        pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, pa.schema({"text": pa.string()})) as writer,
    ):
        writer.write_table(pa.table({"text": ["one"]}))
    assert load(DataConfig(path=str(tmp_path / "x.arrow")), "data") == [{"text": "one"}]
    (tmp_path / "bad.arrow").write_bytes(b"no arrow")
    with pytest.raises(DataError, match=r"bad.arrow: not an Arrow file"):
        load(DataConfig(path=str(tmp_path / "bad.arrow")), "data")
    asked = {"id": "7", "question": "who?", "answers": [{"text": "Ann", "answer_start": 0}]}
    squad = {
        "data": [{"title": "t", "paragraphs": [{"context": "Ann did.", "qas": [asked, {**asked, "answers": []}]}]}]
    }
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    (tmp_path / "half.json").write_text(json.dumps({"data": [{"title": "t"}]}))
    with pytest.raises(DataError, match="not all of its form"):
        load(DataConfig(path=str(tmp_path / "half.json")), "data")
    first, second = load(DataConfig(path=str(tmp_path / "squad.json")), "data")
    assert first["answers"] == {"text": ["Ann"], "answer_start": [0]}
    assert second["answers"] == {"text": [], "answer_start": []}
    assert (first["context"], first["title"]) == ("Ann did.", "t")


def test_a_report_says_what_is_in_the_data():
    rows = [{"text": "the view was great", "label": 1}] * 2
    rows += [{"text": "the view", "label": 0}, {"text": " ", "label": 0, "chosen": 1, "rejected": 1}]
    said = "\n".join(check.lines(Rows(rows, "x.jsonl", range(1, 5)), toy.tokenizer(), {"row": 3}))
    assert "x.jsonl: 4 rows with text, label, chosen (in 1), rejected (in 1)" in said
    assert "most 5 tokens; 2 rows exceed 3" in said
    assert "text: empty in 1 rows, the first at x.jsonl:4" in said
    assert "duplicates: 1 rows are copies" in said
    assert "labels: 1 2 (50%), 0 2 (50%)" in said
    assert "pairs: 1 have equal sides" in said


def test_leakage_is_counted_whole_and_by_the_first_text():
    train = Rows([{"prompt": "a b", "x": 1}, {"prompt": "c", "x": 2}], "t")
    held = Rows([{"prompt": "a b", "x": 1}, {"prompt": "A  B", "x": 3}, {"prompt": "d", "x": 4}], "h")
    assert (
        check.leakage(train, held)
        == "leakage: 1 of 3 held-out rows are training rows, 2 have a training row's first text"
    )


def test_the_command_reports_every_section_of_a_job(tmp_path, capsys):
    from rlhf_ray.config import parse

    heldout = {"path": "toy:reviews/prompts", "split": "heldout", "size": 4, "max_prompt_tokens": 32}
    said = "\n".join(data_report(parse(rl_job(evaluate={"data": heldout}), "job")))
    assert said.count("rows with prompt") == 2
    assert "leakage: 0 of 4" in said
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(rl_job()))
    assert main(["data", str(file)]) == 0
    assert "toy:reviews/prompts: 64 rows" in capsys.readouterr().out


def test_squad_split_keeps_paragraphs_apart(tmp_path):
    """jobs/recipes/squad_split.py, as the question answering recipe's page says."""
    asked = [
        {
            "context": f"Paragraph {i}.",
            "qas": [{"id": f"{i}", "question": "Which?", "answers": [{"text": f"{i}", "answer_start": 10}]}],
        }
        for i in range(20)
    ]
    asked[0]["qas"].append({"id": "none", "question": "Unanswerable?", "answers": []})
    file = tmp_path / "squad.json"
    file.write_text(json.dumps({"data": [{"title": "t", "paragraphs": asked}]}))
    subprocess.run([sys.executable, "jobs/recipes/squad_split.py", file, tmp_path / "out"], check=True, cwd=ROOT)
    train, dev = (
        [json.loads(x) for x in (tmp_path / "out" / f"{n}.jsonl").read_text().splitlines()] for n in ("train", "dev")
    )
    assert len(train) + len(dev) == 20
    assert train
    assert dev
    assert not {r["context"] for r in train} & {r["context"] for r in dev}
