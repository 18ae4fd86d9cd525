"""Atomic writes: the complete old content or the complete new one, and nothing left next to it."""

import json
import signal
import subprocess
import sys
from subprocess import PIPE

import pytest

from rlhf_ray.run.atomic import replace_directory, replace_file, write_json, write_text
from tests.helpers import ROOT

ERRORS = [OSError("disk full"), KeyboardInterrupt(), SystemExit(1)]


def fail_halfway(file, error):
    """Raises ``error`` after a part of the new content has been written."""
    with replace_file(file) as temporary:
        temporary.write_text("ne")
        raise error


def make_model(directory, weights):
    """A directory with a file in it and one further down."""
    (directory / "tokenizer").mkdir(parents=True)
    (directory / "weights").write_text(weights)
    (directory / "tokenizer" / "words").write_text(weights)


def fail_halfway_in_directory(directory, error):
    """Raises ``error`` after the new directory has been filled."""
    with replace_directory(directory) as temporary:
        make_model(temporary, "new")
        raise error


def test_a_file_gets_its_new_content_and_nothing_is_left_next_to_it(tmp_path):
    file = tmp_path / "usage.json"
    write_json(file, {"steps": 1})
    write_json(file, {"steps": 2})
    assert json.loads(file.read_text()) == {"steps": 2}
    write_text(file, "ä\n")
    assert file.read_bytes() == b"\xc3\xa4\n"
    assert list(tmp_path.iterdir()) == [file]


def test_the_old_file_is_there_until_the_block_ends(tmp_path):
    file = tmp_path / "kept.jsonl"
    file.write_text("old")
    with replace_file(file) as temporary:
        temporary.write_text("new")
        assert file.read_text() == "old"
        assert temporary.parent == file.parent  # a rename is atomic only within a file system
    assert file.read_text() == "new"


@pytest.mark.parametrize("error", ERRORS)
def test_an_interrupted_write_leaves_the_old_file(tmp_path, error):
    file = tmp_path / "kept.jsonl"
    file.write_text("old")
    with pytest.raises(type(error)):
        fail_halfway(file, error)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path):
    file = tmp_path / "manifest.json"
    write_json(file, {"state": "running"})
    with pytest.raises(TypeError):
        write_json(file, {"state": object()})
    assert json.loads(file.read_text()) == {"state": "running"}
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_was_never_complete_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match="half"):
        fail_halfway(tmp_path / "kept.jsonl", ValueError("half"))
    assert not list(tmp_path.iterdir())


def test_a_directory_replaces_the_old_one_whole(tmp_path):
    model = tmp_path / "model"
    make_model(model, "old")
    (model / "only-in-the-old-one").touch()
    with replace_directory(model) as temporary:
        assert not temporary.exists()
        make_model(temporary, "new")
        assert (model / "weights").read_text() == "old"
    assert sorted(str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*")) == [
        "model",
        "model/tokenizer",
        "model/tokenizer/words",
        "model/weights",
    ]
    assert (model / "tokenizer" / "words").read_text() == "new"


@pytest.mark.parametrize("error", ERRORS)
def test_an_interrupted_directory_leaves_the_old_one(tmp_path, error):
    model = tmp_path / "model"
    make_model(model, "old")
    with pytest.raises(type(error)):
        fail_halfway_in_directory(model, error)
    assert (model / "weights").read_text() == "old"
    assert list(tmp_path.iterdir()) == [model]


def test_a_killed_process_leaves_the_old_directory_and_the_next_one_starts_clean(tmp_path):
    model = tmp_path / "model"
    make_model(model, "old")
    writer = """if True:
        import sys, time
        from pathlib import Path
        from rlhf_ray.run.atomic import replace_directory
        with replace_directory(Path(sys.argv[1])) as temporary:
            temporary.mkdir()
            (temporary / "half").touch()
            print("writing", flush=True)
            time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", writer, str(model)], stdout=PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert (model / "weights").read_text() == "old"
    with replace_directory(model) as temporary:
        make_model(temporary, "new")
    assert not (model / "half").exists()
    assert list(tmp_path.iterdir()) == [model]
