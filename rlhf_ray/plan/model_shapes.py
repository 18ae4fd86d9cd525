"""The shapes of a job's models, from config.json, model.init or an earlier stage; nothing is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import ModelConfig, SingleJob
from ..config.jobs import STAGE
from ..jobs.kinds import kind_of
from ..models.directory import fetch_config, has_experts
from ..toy import world as toy
from .requirements import Models
from .shape import FAMILIES, Shape, shape_of

Stages = Mapping[str, SingleJob]


class NoEstimate(Exception):
    """Why there is no shape, in a sentence: the model does not exist yet, or its architecture has no formula."""


def job_models(job: SingleJob, stages: Stages) -> Models | None:
    """The shapes of a job's models; None if it has no model. ``stages`` are those of its pipeline.

    Raises NoEstimate, and BadInput for sizes that no model can have.
    """
    needs = kind_of(job).needs(job)
    if needs.model is None:
        return None
    rewards = tuple(model_shape(ModelConfig(path=path), stages) for path in needs.reward_models)
    critic = None if needs.critic is None else model_shape(needs.critic, stages)
    return Models(model_shape(needs.model, stages), critic, rewards)


def model_shape(model: ModelConfig, stages: Stages) -> Shape:
    """The shape of one model. Raises NoEstimate, and BadInput for sizes that no model can have."""
    path = str(model.path)
    if model.init is not None:
        values, source = {"vocab_size": _vocab_size(str(model.tokenizer), stages), **model.init}, "model.init"
    elif path.startswith(STAGE):
        earlier = _named_stage(path, stages)
        earlier_model = None if earlier is None else kind_of(earlier).needs(earlier).model
        if earlier_model is None:
            raise NoEstimate(f"{path} is no stage with a model")
        return model_shape(earlier_model, stages)
    else:
        values, source = _config_values(path, model.revision), f"{path}: config.json"
    shape = shape_of(values, source)
    if shape is None and has_experts(values):
        raise NoEstimate(
            f"no formula for the mixture of experts {values.get('model_type')}; there is no expert parallelism, so its "
            "weights, gradients and optimizer states must fit on the GPUs at learner.zero_stage: 3"
        )
    if shape is None:
        raise NoEstimate(f"no formula for model_type {values.get('model_type')}; expected one of {', '.join(FAMILIES)}")
    return shape


def _named_stage(path: str, stages: Stages) -> SingleJob | None:
    """The stage that 'stage:NAME' or 'stage:NAME/FILE' names."""
    return stages.get(path.removeprefix(STAGE).partition("/")[0])


def _config_values(path: str, revision: str | None) -> dict[str, Any]:
    try:
        return fetch_config(path, revision)
    except FileNotFoundError:
        raise NoEstimate(f"no model at {path} yet") from None
    except (OSError, ValueError) as error:
        raise NoEstimate(
            f"{path} is not a directory, and its config.json cannot be downloaded ({type(error).__name__})"
        ) from None


def _vocab_size(name: str, stages: Stages) -> int:
    """How many tokens a tokenizer has: the toy one, one that an earlier stage makes, or one in a directory."""
    if name == "toy":
        return len(toy.vocabulary())
    stage = _named_stage(name, stages) if name.startswith(STAGE) else None
    if stage is not None and (vocab_size := kind_of(stage).needs(stage).vocab_size) is not None:
        return vocab_size
    file = Path(name).expanduser() / "tokenizer.json"
    if not file.is_file():
        raise NoEstimate(f"{name} has no tokenizer.json, which would say how many tokens the model embeds")
    values = json.loads(file.read_text())
    vocab = values["model"]["vocab"]
    tokens = set(vocab) if isinstance(vocab, dict) else {token for token, _ in vocab}
    return len(tokens | {token["content"] for token in values.get("added_tokens", [])})
