"""Which models and workers a job needs, from its config: tokenizer, directories, roles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import PPO, BadInput, ILQLJob, ModelConfig, ModelReward, RLJob, Supervised
from ..data import tokenizer as tokenizers
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


def prepare(
    config: ModelConfig, run_dir: Path, seed: int, kind: str = "policy", labels: tuple[str, ...] = ()
) -> tuple[ModelConfig, Any]:
    """The model as a local directory (a random one of this ``kind`` is written to RUN/init), and its tokenizer.

    A random masked language model's tokenizer gets a mask token if it has none. Raises BadInput where either cannot be had,
    the vocabulary is larger than the embedding, or the model is an encoder-decoder and the job is not for one, or the reverse.
    """
    ends = kind in ("policy", "scalar", "values", "seq2seq")
    if config.init is not None:
        tokenizer = tokenizers.load(config, None, ends)
        if kind == "masked" and tokenizer.mask_token_id is None:
            tokenizer.add_special_tokens({"mask_token": "<mask>"})
        directory = run_dir / "init"
        if not (directory / "config.json").is_file():
            with replace_directory(directory) as part:
                create_model(config, str(part), tokenizer, seed, kind if kind != "scalar" else "policy", labels)
        return config.model_copy(update={"path": str(directory), "init": None}), tokenizer
    directory_name = resolve_model(str(config.path), config.revision)
    _require_sides(str(config.path), directory_name, kind)
    tokenizer = tokenizers.load(config, directory_name, ends)
    size = read_vocab_size(directory_name)
    if len(tokenizer) > size:
        raise BadInput(
            f"model.path: {config.path} embeds {size} tokens and its tokenizer has {len(tokenizer)}; "
            "give the model.tokenizer it was trained with"
        )
    if kind == "masked" and tokenizer.mask_token_id is None:
        raise BadInput(f"model.path: {config.path}: its tokenizer has no mask_token; a masked language model needs one")
    return config.model_copy(update={"path": directory_name}), tokenizer


def _require_sides(name: str, directory: str, kind: str) -> None:
    both, values = is_encoder_decoder(directory), read_config(directory)
    if both and kind == "policy":
        raise BadInput(
            f"model.path: {name} is an encoder-decoder; job: seq2seq trains it, job: evaluate and sample take its answers, and all "
            "else (sft, dpo, ppo) needs a decoder"
        )
    if kind == "seq2seq" and not both:
        raise BadInput(f"model.path: {name} is no encoder-decoder (T5, BART, Marian); a decoder learns with job: sft")
    if kind == "seq2seq" and values.get("decoder_start_token_id") is None:
        raise BadInput(
            f"model.path: {name}: its config.json has no decoder_start_token_id, so no target could begin; set it there"
        )


def supervised_roles(job: Supervised, model: ModelConfig, kind: str, labels: tuple[str, ...]) -> list[Role]:
    """The one model of a supervised job."""
    made = Role(name="actor", kind=kind, model=model, lr=job.learner.lr, num_updates=job.num_steps, labels=labels)
    if isinstance(job, ILQLJob):
        made = replace(made, frozen_trunk=job.behaviour_coef == 0, target_rate=job.target_rate)
    return [made]


def rl_roles(job: RLJob, model: ModelConfig, tokenizer: Any) -> list[Role]:
    """Actor; critic for PPO; reference where its KL is used or reported and no adapter can be switched off for it."""
    a = job.algorithm
    updates = job.num_steps * a.epochs * a.num_mini_batches
    roles = [Role(name="actor", kind="policy", model=model, lr=job.learner.lr, num_updates=updates)]
    if isinstance(a, PPO):
        trunk = critic_trunk(job, model, tokenizer)
        roles.append(
            Role(name="critic", kind="scalar", model=trunk, lr=job.critic.lr, zero_head=True, num_updates=updates)
        )
    if job.needs_reference and model.lora is None:
        roles.append(Role(name="reference", kind="policy", model=model, lr=None))
    return roles


def critic_trunk(job: RLJob, model: ModelConfig, tokenizer: Any) -> ModelConfig:
    """critic.path, else the reward model where it shares the policy's tokenizer, else the policy."""
    base = model.model_copy(update={"lora": None})
    if job.critic.path is not None:
        return base.model_copy(update={"path": resolve_model(job.critic.path)})
    term: ModelReward | None = job.reward_model
    if term is not None:
        directory = resolve_model(term.path)
        other = tokenizers.load(ModelConfig(path=directory), directory)
        if other.get_vocab() == tokenizer.get_vocab():
            return base.model_copy(update={"path": directory})
    return base


def eos_ids(tokenizer: Any, directory: str) -> tuple[int, ...]:
    """Tokens that end a response: the tokenizer's, and those of the model's generation config."""
    more = read_generation_eos(directory)
    return tuple(sorted({tokenizer.eos_token_id, *more}))
