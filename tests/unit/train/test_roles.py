"""The model that a job starts from."""

import pytest
from safetensors.torch import load_file

from rlhf_ray.config import ModelConfig
from rlhf_ray.models.load import create_model
from rlhf_ray.train import roles
from tests.helpers import TINY


def test_a_random_model_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    config = ModelConfig(init=TINY, tokenizer="toy")

    def interrupted(config, directory, tokenizer, seed, *options):
        create_model(config, directory, tokenizer, seed)
        (tmp_path / directory / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(roles, "create_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        roles.prepare_model(config, tmp_path, 1)
    monkeypatch.setattr(roles, "create_model", create_model)
    model, _ = roles.prepare_model(config, tmp_path, 1)
    assert load_file(f"{model.path}/model.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["init"]
