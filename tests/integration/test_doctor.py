"""`rlhf-ray doctor` as a user runs it: exit code 0 where all is well, 1 where something fails."""

import subprocess
import sys

import pytest

from tests.helpers import ROOT

pytestmark = pytest.mark.integration


def doctor(*options):
    line = [sys.executable, "-m", "rlhf_ray", "doctor", *options]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, cwd=ROOT, check=False)


def test_doctor_finds_an_engine_that_agrees_and_a_directory_that_fails(tmp_path):
    (tmp_path / "file").write_text("")
    done = doctor("--dir", str(tmp_path / "file"))
    lines = done.stdout.splitlines()
    failed = [line for line in lines if line.startswith("FAIL")]
    assert done.returncode == 1, done.stdout + done.stderr
    assert [line.split(":")[0] for line in failed] == ["FAIL run directory"]
    for name in (
        "ok   versions: ",
        "ok   ray: 1 node(s)",
        "ok   object store: ",
        "ok   gloo all-reduce: 2 ranks on 1 node(s), ",
        "ok   agreement: engine and learner differ by at most ",
    ):
        assert any(line.startswith(name) for line in lines), done.stdout + done.stderr
