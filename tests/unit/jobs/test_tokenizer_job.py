"""A tokenizer that was trained on a corpus."""

import json

import pytest
from rich.console import Console
from transformers import AutoTokenizer

from rlhf_ray.actors.session import Stop
from rlhf_ray.config import parse
from rlhf_ray.data.examples import DataError
from rlhf_ray.jobs import tokenizer
from rlhf_ray.jobs.kind import RunContext
from rlhf_ray.run.directory import RunDir

TEXTS = ["The view was great.", "Not bad, 我在这里 — café!", "the staff was lovely"] * 20


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece"])
def test_a_corpus_makes_a_tokenizer_that_transformers_reads(tmp_path, algorithm):
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": t, "n": 1}) + "\n" for t in TEXTS))
    tree = {"job": "tokenizer", "data": {"path": str(tmp_path / "x.jsonl")}, "run": {"dir": str(tmp_path / "run")},
            "algorithm": algorithm, "vocab_size": 330}  # fmt: skip
    with RunDir(parse(tree, "job")) as run:
        found = tokenizer.run(run.job, RunContext(run=run, stop=Stop(), console=Console(quiet=True)))
    made = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert len(made) == found["vocab_size"] <= 330
    assert [made.pad_token, made.bos_token, made.eos_token, made.mask_token] == ["<pad>", "<bos>", "<eos>", "<mask>"]
    ids = made(TEXTS[0])["input_ids"]
    assert made.unk_token_id not in ids
    assert len(ids) < 12
    if algorithm == "bpe":  # any text comes back as it was
        for text in [*TEXTS, " two  blanks ", "ünknown ☃"]:
            assert made.decode(made(text)["input_ids"]) == text


def test_a_corpus_without_text_is_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"n": 1}))
    tree = {"job": "tokenizer", "data": {"path": str(tmp_path / "x.jsonl")}, "run": {"dir": str(tmp_path / "run")}}
    with pytest.raises(DataError, match="no text in columns n"), RunDir(parse(tree, "job")) as run:
        tokenizer.run(run.job, RunContext(run=run, stop=Stop(), console=Console(quiet=True)))
