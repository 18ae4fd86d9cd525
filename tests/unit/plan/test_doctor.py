"""Checks of `rlhf-ray doctor` against conditions that are really there."""

import shutil
import socket

import pytest

from rlhf_ray.config import ClusterConfig
from rlhf_ray.plan import doctor


def test_versions_are_held_against_the_window():
    assert [f.well for f in doctor.versions(["numpy>=1", "ghost>=1 ; extra == 'vllm'"])] == [True]
    summary, old, missing = doctor.versions(["numpy<1", "no-such-package>=2", "pydantic>=2"])
    assert not summary.well
    assert summary.seen == "1 packages in the tested window"
    assert "is outside the tested <1" in old.seen
    assert (missing.seen, missing.remedy) == ("not installed", "pip install 'no-such-package>=2'")


def test_this_installation_is_in_its_own_window():
    assert [str(f) for f in doctor.versions(doctor.requires(doctor.DISTRIBUTION)) if not f.well] == []


def test_a_directory_that_cannot_be_written(tmp_path):
    assert doctor.writable(tmp_path / "new").well
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "file").write_text("")
    found = doctor.writable(tmp_path / "file" / "run")
    assert not found.well
    assert str(found).startswith(f"FAIL run directory: {tmp_path}/file/run: Not a directory; give another run.dir")
    assert not doctor.writable(doctor.Path("/proc/run")).well


def test_disk_and_memory_against_what_is_asked(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    assert doctor.disk(tmp_path / "not" / "yet", free / 2).well
    assert not doctor.disk(tmp_path, 2.0 * free).well
    assert doctor.memory(1e6).well
    assert not doctor.memory(1e15).well


def test_a_cluster_is_joined_with_a_token_that_only_its_owner_reads(tmp_path):
    token, joined = tmp_path / "token", ClusterConfig(address="auto")
    assert doctor.authentication(ClusterConfig(), {}).well
    assert "ray get-auth-token" in doctor.authentication(joined, {}).remedy
    mode = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    assert "no token in" in doctor.authentication(joined, mode).seen
    token.write_text("x")
    token.chmod(0o644)
    assert doctor.authentication(joined, mode).remedy == f"chmod 600 {token}"
    token.chmod(0o600)
    assert doctor.authentication(joined, mode).well
    assert not doctor.authentication(ClusterConfig(), {"RAY_ADDRESS": "10.0.0.1:6379"}).well


def test_a_missing_compiler_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = doctor.compiler()
    assert not found.well
    assert found.seen == "no c++ and no ninja"


def test_what_a_check_raises_is_a_finding_with_its_remedy():
    def dial():
        socket.create_connection(("127.0.0.1", 1), timeout=1)
        yield doctor.Finding("never", True, "")

    (found,) = doctor.attempt("ray", "start it", dial)
    assert str(found) == "FAIL ray: ConnectionRefusedError: [Errno 111] Connection refused; start it"


@pytest.mark.parametrize("well", [True, False])
def test_a_remedy_is_shown_only_where_it_is_needed(well):
    assert ("; mend it" in str(doctor.Finding("a", well, "b", "mend it"))) is not well
