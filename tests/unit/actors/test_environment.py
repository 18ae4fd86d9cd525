"""Token authentication by environment variables, and the variables of workers."""

import os

import pytest

from rlhf_ray.actors.environment import allocator_variable, set_client_token


def test_a_token_turns_the_mode_on_and_a_file_comes_first(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    set_client_token(None)
    assert "RAY_AUTH_MODE" not in os.environ
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    (tmp_path / "token").write_text("1" * 64)
    set_client_token(str(tmp_path / "token"))
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "token")
    assert "RAY_AUTH_TOKEN" not in os.environ
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("2" * 64)
    set_client_token(None)
    assert os.environ["RAY_AUTH_MODE"] == "token"
    monkeypatch.delenv("RAY_AUTH_MODE")


@pytest.mark.parametrize(
    ("role", "configured", "variable"),
    [
        ("learner", "", "expandable_segments:True"),
        ("learner", "max_split_size_mb:64", "max_split_size_mb:64,expandable_segments:True"),
        ("learner", "expandable_segments:False", None),
        ("rollout", "", None),
        ("rollout", "expandable_segments:True,max_split_size_mb:64", "max_split_size_mb:64"),
        ("reward", "expandable_segments:True", None),
    ],
)
def test_learners_get_expandable_segments_and_rollout_workers_never(role, configured, variable):
    assert allocator_variable(role, configured).get("PYTORCH_CUDA_ALLOC_CONF") == variable
