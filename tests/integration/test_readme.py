"""Every command of the README's sh blocks runs; `make quickstart` and `make test` are CI's own two lines."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

README = (ROOT / "README.md").read_text()
LINES = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]


def marked(line):
    """A search takes minutes: `make test-learning` runs it, and trains what it found."""
    return pytest.param(line, marks=[pytest.mark.learning, pytest.mark.timeout(2400)]) if "tune" in line else line


@pytest.mark.parametrize("line", [marked(line) for line in LINES if not line.startswith("make ")])
def test_a_command_of_the_readme(line):
    if "quickstart" in line and "plan" not in line and not (ROOT / "runs/quickstart/manifest.json").is_file():
        pytest.skip("make quickstart has not run here")
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        line.split(),
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=2300 if "tune" in line else 300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ci_runs_the_two_commands_and_every_stage_of_the_tests():
    ci, makefile = (ROOT / ".ci" / "run").read_text(), (ROOT / "Makefile").read_text()
    commands = re.findall(r"\) (make \w+)(?: STAGES=\"(.*?)\")?", ci)
    assert {command for command, _ in commands} == {line for line in LINES if line.startswith("make ")}
    stages = re.search(r"STAGES \?= (.*)", makefile)[1].split()
    assert [stage for _, names in commands for stage in names.split()] == stages
