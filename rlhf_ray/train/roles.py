"""Which models and workers a job needs, from its config: tokenizer, directories, roles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config import BadInput, ModelConfig, RLJob, Supervised
from ..data.tokenizer import load_tokenizer
from ..learner.worker import Role
from ..models.load import (
    create_model,
    is_encoder_decoder,
    read_config,
    read_generation_eos,
    read_vocab_size,
    resolve_model,
)
from ..run.atomic import replace_directory
from ..tasks.base import TaskKind

KINDS_WITH_EOS = ("policy", "scalar", "values", "seq2seq")  # of models whose tokenizer must have an end token


def prepare_model(
    config: ModelConfig, run_dir: Path, seed: int, kind: str = "policy", labels: tuple[str, ...] = ()
) -> tuple[ModelConfig, Any]:
    """The model as a local directory, and its tokenizer. A random model of this ``kind`` is written to RUN/init.

    Raises BadInput if either cannot be found, if the vocabulary is larger than the embedding, or if the model is an
    encoder-decoder and the job needs a decoder, or the reverse.
    """
    if config.init is not None:
        return _random_model(config, run_dir / "init", seed, kind, labels)
    directory = resolve_model(str(config.path), config.revision)
    _check_architecture(str(config.path), directory, kind)
    tokenizer = load_tokenizer(config, directory, kind in KINDS_WITH_EOS)
    num_embeddings = read_vocab_size(directory)
    if len(tokenizer) > num_embeddings:
        raise BadInput(
            f"model.path: {config.path} embeds {num_embeddings} tokens and its tokenizer has {len(tokenizer)}; "
            "give the model.tokenizer it was trained with"
        )
    if kind == "masked" and tokenizer.mask_token_id is None:
        raise BadInput(f"model.path: {config.path}: its tokenizer has no mask_token; a masked language model needs one")
    return config.model_copy(update={"path": directory}), tokenizer


def _random_model(
    config: ModelConfig, directory: Path, seed: int, kind: str, labels: tuple[str, ...]
) -> tuple[ModelConfig, Any]:
    """The random model, unless an earlier start wrote it. A masked language model gets a mask token if it has none."""
    tokenizer = load_tokenizer(config, None, kind in KINDS_WITH_EOS)
    if kind == "masked" and tokenizer.mask_token_id is None:
        tokenizer.add_special_tokens({"mask_token": "<mask>"})
    if not (directory / "config.json").is_file():
        with replace_directory(directory) as temporary:
            create_model(config, str(temporary), tokenizer, seed, kind if kind != "scalar" else "policy", labels)
    return config.model_copy(update={"path": str(directory), "init": None}), tokenizer


def _check_architecture(name: str, directory: str, kind: str) -> None:
    """Raises BadInput if the model is an encoder-decoder and ``kind`` is for decoders, or the reverse."""
    encoder_decoder = is_encoder_decoder(directory)
    if encoder_decoder and kind == "policy":
        raise BadInput(
            f"model.path: {name} is an encoder-decoder; job: seq2seq trains it, job: evaluate and sample take its "
            "answers, and all else (sft, dpo, ppo) needs a decoder"
        )
    if kind == "seq2seq" and not encoder_decoder:
        raise BadInput(f"model.path: {name} is no encoder-decoder (T5, BART, Marian); a decoder learns with job: sft")
    if kind == "seq2seq" and read_config(directory).get("decoder_start_token_id") is None:
        raise BadInput(
            f"model.path: {name}: its config.json has no decoder_start_token_id, so no target could begin; set it there"
        )


def supervised_role(job: Supervised, kind: TaskKind[Any], model: ModelConfig, labels: tuple[str, ...]) -> Role:
    """The one model of a supervised job."""
    role = Role(name="actor", kind=kind.model, model=model, lr=job.learner.lr, num_updates=job.num_steps, labels=labels)
    return kind.adapt_role(job, role)


def rl_roles(job: RLJob, model: ModelConfig, tokenizer: Any) -> list[Role]:
    """Actor, critic for PPO, and reference.

    There is no reference if nothing uses or reports its KL, or if the actor without its adapter is the reference.
    """
    num_updates = job.num_steps * job.algorithm.epochs * job.algorithm.num_mini_batches
    actor = Role(name="actor", kind="policy", model=model, lr=job.learner.lr, num_updates=num_updates)
    roles = [actor]
    if job.algorithm.has_critic:
        trunk = critic_trunk(job, model, tokenizer)
        critic = Role(
            name="critic", kind="scalar", model=trunk, lr=job.critic.lr, zero_head=True, num_updates=num_updates
        )
        roles.append(critic)
    if job.needs_reference and model.lora is None:
        roles.append(Role(name="reference", kind="policy", model=model, lr=None))
    return roles


def critic_trunk(job: RLJob, model: ModelConfig, tokenizer: Any) -> ModelConfig:
    """critic.path; else the reward model if it has the policy's tokenizer; else the policy."""
    policy = model.model_copy(update={"lora": None})
    if job.critic.path is not None:
        return policy.model_copy(update={"path": resolve_model(job.critic.path)})
    if job.reward_model is not None:
        directory = resolve_model(job.reward_model.path)
        reward_tokenizer = load_tokenizer(ModelConfig(path=directory), directory)
        if reward_tokenizer.get_vocab() == tokenizer.get_vocab():
            return policy.model_copy(update={"path": directory})
    return policy


def eos_ids(tokenizer: Any, directory: str) -> tuple[int, ...]:
    """Tokens that end a response, sorted: the tokenizer's, and those of the model's generation config."""
    return tuple(sorted({tokenizer.eos_token_id, *read_generation_eos(directory)}))
