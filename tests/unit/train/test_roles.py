"""The model that a job starts from."""

import pytest

from rlhf_ray.config import ModelConfig
from rlhf_ray.models.load import create_model, read_tensors
from rlhf_ray.train import roles
from tests.helpers import TINY


def test_a_random_model_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    config, made = ModelConfig(init=TINY, tokenizer="toy"), create_model

    def killed(config, directory, tokenizer, seed, *more):
        made(config, directory, tokenizer, seed)
        (tmp_path / directory / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(roles, "create_model", killed)
    with pytest.raises(KeyboardInterrupt):
        roles.prepare(config, tmp_path, 1)
    monkeypatch.setattr(roles, "create_model", made)
    found, _ = roles.prepare(config, tmp_path, 1)
    assert list(read_tensors(str(found.path)))
    assert [p.name for p in tmp_path.iterdir()] == ["init"]
