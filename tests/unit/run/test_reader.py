"""Reading what a run wrote: files that are there, missing, cut short or damaged."""

import pytest

from rlhf_ray.cli import main
from rlhf_ray.config import BadInput
from rlhf_ray.run.reader import (
    evaluation_file,
    evaluation_files,
    read_config,
    read_evaluation,
    read_manifest,
    read_metrics,
)


def test_nothing_written_is_nothing_read(tmp_path):
    assert (read_metrics(tmp_path), read_manifest(tmp_path), evaluation_files(tmp_path)) == ([], {}, [])
    assert (read_config(tmp_path), read_evaluation(tmp_path)) == (None, None)


@pytest.mark.parametrize("cut", ["", "{", '{"step": 1, "lo', '{"step"', "{}", '"'])
def test_a_last_line_that_was_cut_short_is_left_out(tmp_path, cut):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "reward/mean": null}\n' + cut)
    assert read_metrics(tmp_path) == [{"step": 0, "reward/mean": None}]


def test_bytes_that_are_no_text_are_a_line_cut_short(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 0}\n{"step": 1, "x\xff')
    assert read_metrics(tmp_path) == [{"step": 0}]


def test_damage_before_the_last_line_is_bad_input_with_the_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(BadInput, match=r"metrics\.jsonl:2: not a line of metrics"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("content", ["", '{"state": ', "[]", "7"])
def test_a_damaged_json_file_is_bad_input_with_its_name_and_what_to_do(tmp_path, content):
    for name, read in (("manifest", read_manifest), ("config", read_config), ("evaluation", read_evaluation)):
        (tmp_path / f"{name}.json").write_text(content)
        with pytest.raises(BadInput, match=rf"/{name}\.json: damaged, .*; restore it, or remove it"):
            read(tmp_path)


def test_evaluations_are_in_the_order_of_their_steps(tmp_path):
    files = [evaluation_file(tmp_path, step) for step in (0, 4, 1_000_000)]
    files[0].parent.mkdir()
    for file in reversed(files):
        file.touch()
    assert evaluation_files(tmp_path) == files
    assert files[1].name == "step-000004.parquet"


@pytest.mark.parametrize("content", ['{"a":', "[]", '{"seconds": "x"}', "\0"])
def test_report_refuses_a_damaged_usage_file_in_one_line(tmp_path, capsys, content):
    (tmp_path / "usage.json").write_text(content)
    assert main(["report", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"rlhf-ray: {tmp_path / 'usage.json'}: damaged, ")
    assert err.count("\n") == 1
