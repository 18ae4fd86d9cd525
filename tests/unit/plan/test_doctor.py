"""Checks of `rlhf-ray doctor` against conditions that are really there."""

import json
import shutil
import socket

import numpy as np
import pytest
from safetensors.numpy import save_file

from rlhf_ray.config import BadInput, ClusterConfig
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


def store_of(*gigabytes):
    return [{"CPU": 8.0, "object_store_memory": gb * 1e9} for gb in gigabytes]


def test_the_object_store_must_hold_two_versions_of_the_model_on_every_node():
    well = doctor.object_store(store_of(60, 40), 7_620_000_000)
    assert str(well).startswith("ok   object store: 40.0 GB on the smallest node; two versions of 7.62 B bfloat16")
    assert "with samples take 33.5 GB" in well.seen
    found = doctor.object_store(store_of(60, 30), 7_620_000_000)
    assert not found.well
    assert "--object-store-memory=34000000000" in found.remedy
    assert "--shm-size=34g" in found.remedy
    assert "enough for two versions of 1.8 B bfloat16 parameters" in doctor.object_store(store_of(8), None).seen
    assert not doctor.object_store(store_of(8, 0.1), None).well


def test_the_size_of_a_model_is_in_its_files_or_follows_from_its_config(tmp_path):
    config = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
              "num_attention_heads": 2, "vocab_size": 32, "tie_word_embeddings": True}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    by_formula = doctor.model_size(str(tmp_path))
    save_file({"a": np.zeros((3, 5), np.float32)}, tmp_path / "model-1.safetensors", metadata={"format": "pt"})
    save_file({"b": np.zeros(by_formula, np.float16), "c": np.float32(1)[None]}, tmp_path / "model-2.safetensors")
    assert doctor.model_size(str(tmp_path)) == by_formula + 16
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(BadInput, match=r"--model .*: no formula for this architecture; give a directory"):
        doctor.model_size(str(tmp_path))
