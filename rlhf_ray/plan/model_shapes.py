"""The shapes of a job's models without loading any: from config.json, from model.init, or from an earlier stage of the pipeline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import ModelConfig, SingleJob, TokenizerJob
from ..config.jobs import STAGE
from ..jobs.kinds import kind_of
from ..toy import world as toy
from .requirements import Models
from .shape import FAMILIES, Shape, shape_of


class NoEstimate(Exception):
    """Why there is no shape, in a sentence: the model is not there yet, or its architecture has no formula."""


def models(job: SingleJob, stages: Mapping[str, Any]) -> Models | None:
    """The shapes of a job, None if it has no model; ``stages`` are those of its pipeline. Raises NoEstimate."""
    needs = kind_of(job).needs(job)
    if needs.model is None:
        return None
    rewards = tuple(of(ModelConfig(path=path), stages) for path in needs.reward_models)
    critic = None if needs.critic is None else of(needs.critic, stages)
    return Models(of(needs.model, stages), critic, rewards)


def of(model: ModelConfig, stages: Mapping[str, Any]) -> Shape:
    """The shape of one model. Raises NoEstimate, and BadInput for sizes that no model can have."""
    if model.init is not None:
        values, source = {"vocab_size": _tokens(str(model.tokenizer), stages), **model.init}, "model.init"
    elif str(model.path).startswith(STAGE):
        return of(stages[str(model.path).removeprefix(STAGE).partition("/")[0]].model, stages)
    else:
        values, source = _config(str(model.path), model.revision), f"{model.path}: config.json"
    found = shape_of(values, source)
    if found is None:
        raise NoEstimate(f"no formula for model_type {values.get('model_type')}; there are {', '.join(FAMILIES)}")
    return found


def _config(path: str, revision: str | None) -> dict[str, Any]:
    """config.json of a directory or Hugging Face id, of an adapter that of its base."""
    directory = Path(path).expanduser()
    adapter, file = directory / "adapter_config.json", directory / "config.json"
    if not file.is_file() and adapter.is_file():
        return _config(str(json.loads(adapter.read_text())["base_model_name_or_path"]), None)
    if not file.is_file():
        file = _download(path, revision)
    values = json.loads(file.read_text())
    return {**values, **values.get("text_config", {})}


def _download(path: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise NoEstimate(f"no model at {path} yet")
    try:
        return Path(hf_hub_download(path, "config.json", revision=revision))
    except Exception as error:
        raise NoEstimate(
            f"{path} is no directory, and its config.json cannot be had ({type(error).__name__})"
        ) from None


def _tokens(name: str, stages: Mapping[str, Any]) -> int:
    """How many tokens a tokenizer has."""
    if name == "toy":
        return len(toy.vocabulary())
    stage = stages.get(name.removeprefix(STAGE).partition("/")[0]) if name.startswith(STAGE) else None
    if isinstance(stage, TokenizerJob):
        return stage.vocab_size
    file = Path(name).expanduser() / "tokenizer.json"
    if not file.is_file():
        raise NoEstimate(f"no tokenizer.json in {name}, which would say how many tokens the model embeds")
    values = json.loads(file.read_text())
    vocab = values["model"]["vocab"]
    known = set(vocab) if isinstance(vocab, dict) else {token for token, _ in vocab}
    return len(known | {token["content"] for token in values.get("added_tokens", [])})
