"""Loads models from local Hugging Face directories, and creates random ones.

Every model is loaded from a directory, also a random one, so that every role and every ZeRO stage starts from the same
bytes. The ``kind`` of a model names its head: policy, scalar, masked, classes, tags, span, values or seq2seq.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.initialization import no_init_weights
from transformers.utils.logging import disable_progress_bar

from ..config import BadInput, LoraConfig, ModelConfig
from .checkpoint_format import find_saved_tensors, note_rules
from .directory import context_length, find_local_model
from .log_probs import PolicyModel, Ragged, ScalarModel
from .seq2seq import Seq2SeqModel
from .task_heads import ClassModel, SpanModel, TokenModel
from .value_heads import ValueModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
AUTO_CLASSES: dict[str, Any] = {
    "policy": AutoModelForCausalLM,
    "scalar": AutoModelForSequenceClassification,
    "masked": AutoModelForMaskedLM,
    "classes": AutoModelForSequenceClassification,
    "tags": AutoModelForTokenClassification,
    "span": AutoModelForQuestionAnswering,
    "values": AutoModelForCausalLM,
    "seq2seq": AutoModelForSeq2SeqLM,
}
LANGUAGE_MODELS = (AutoModelForCausalLM, AutoModelForSeq2SeqLM)  # their head is pre-trained with the model
COMPILED_LAYERS = ("RMSNorm", "MLP")  # ends of class names in transformers
WRAPPERS: dict[str, type[Ragged]] = {
    "policy": PolicyModel,
    "scalar": ScalarModel,
    "masked": TokenModel,
    "classes": ClassModel,
    "tags": TokenModel,
    "span": SpanModel,
    "values": ValueModel,
    "seq2seq": Seq2SeqModel,
}


def resolve_model(path: str, revision: str | None = None) -> str:
    """The local directory of a model: itself, or the snapshot of a Hugging Face id.

    Raises BadInput if there is none.
    """
    directory = find_local_model(path)
    if directory is not None:
        return directory
    try:
        return snapshot_download(path, revision=revision)
    except Exception as error:
        raise BadInput(
            f"{path}: is not a directory, and cannot be downloaded as a Hugging Face id "
            f"({type(error).__name__}: {error})"
        ) from None


def create_model(
    config: ModelConfig, directory: str, tokenizer: Any, seed: int, kind: str = "policy", labels: tuple[str, ...] = ()
) -> str:
    """Writes a random model of ``config.init`` with the tokenizer's vocabulary to ``directory``; returns ``directory``.

    ``labels`` are the classes of a head. Raises BadInput if transformers does not know the model type, or refuses a
    value.
    """
    values = {**(config.init or {}), **label_config(kind, labels)}
    architecture = values.pop("model_type")
    ids = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad")}
    if kind == "seq2seq":  # a target begins with the padding token, as in T5 and Marian, and no end is forced
        pad = ids["eos_token_id"] if ids["pad_token_id"] is None else ids["pad_token_id"]
        ids |= {"pad_token_id": pad, "decoder_start_token_id": pad, "forced_eos_token_id": None}
    try:
        transformers_config = AutoConfig.for_model(architecture, **{"vocab_size": len(tokenizer), **ids, **values})
        torch.manual_seed(seed)
        model = AUTO_CLASSES[kind].from_config(transformers_config, dtype=torch.float32)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise BadInput(f"model.init: {error}") from None
    disable_progress_bar()  # it would show one file
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def load_model(
    kind: str,
    path: str,
    *,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    attention: str = "packed",
    lora: LoraConfig | None = None,
) -> Any:
    """The model of a local directory in the wrapper of its kind (see WRAPPERS), without dropout.

    The value heads of a ValueModel are new. Raises BadInput if the architecture has no such head.
    """
    model = load_pretrained(kind, path, dtype=dtype, trust_remote_code=trust_remote_code)
    return wrap_model(kind, model, attention=attention, lora=lora)


def label_config(kind: str, labels: tuple[str, ...]) -> dict[str, Any]:
    """Options of transformers' config for the head: one output for a scalar model, else one for each label."""
    if kind == "scalar":
        return {"num_labels": 1}
    return {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}} if labels else {}


def load_pretrained(
    kind: str, path: str, *, dtype: torch.dtype, trust_remote_code: bool = False, labels: tuple[str, ...] = ()
) -> Any:
    """The transformers model of a local directory; an adapter is merged into its base.

    ``labels`` are the classes of a head. Raises BadInput if the directory cannot be loaded as this kind.
    """
    head_options = label_config(kind, labels)
    if (Path(path) / "adapter_config.json").is_file():
        from peft import AutoPeftModelForCausalLM, AutoPeftModelForSeq2SeqLM

        if AUTO_CLASSES[kind] not in LANGUAGE_MODELS:
            raise BadInput(
                f"{path}: is an adapter, which only language models may be; merge it into its base first (peft: "
                "merge_and_unload) and save the result"
            )
        adapter_class = AutoPeftModelForSeq2SeqLM if kind == "seq2seq" else AutoPeftModelForCausalLM
        return adapter_class.from_pretrained(path, dtype=dtype).merge_and_unload()
    try:
        return AUTO_CLASSES[kind].from_pretrained(
            path, dtype=dtype, trust_remote_code=trust_remote_code, **head_options
        )
    except (ValueError, OSError) as error:
        raise BadInput(f"{path}: {error}") from None


def build_skeleton(
    kind: str, path: str, *, dtype: torch.dtype, trust_remote_code: bool = False, labels: tuple[str, ...] = ()
) -> Any:
    """The architecture of a local directory without its weights; ZeRO-3 builds it under ``zero.Init``.

    Raises BadInput for an adapter: its merged weights are in no file, so they cannot be read tensor by tensor.
    """
    if (Path(path) / "adapter_config.json").is_file():
        raise BadInput(
            f"{path}: is an adapter, which learner.zero_stage: 3 cannot read; set learner.zero_stage to 2 or less, or "
            "merge the adapter into its base first"
        )
    head_options = label_config(kind, labels)
    transformers_config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **head_options)
    with no_init_weights():  # it would set the row of the padding token to 0, which a shard may lack
        model = AUTO_CLASSES[kind].from_config(transformers_config, dtype=dtype, trust_remote_code=trust_remote_code)
    model.tie_weights()
    if any(Path(path).glob("*.safetensors")):
        note_rules(model, find_saved_tensors(path))
    return model


def wrap_model(kind: str, model: Any, *, attention: str, lora: LoraConfig | None = None) -> Any:
    """A newly built transformers model in the wrapper of its kind, with adapters if ``lora`` is given, without dropout.

    Raises BadInput if the model has no head of this kind.
    """
    if kind == "scalar" and not isinstance(getattr(model, "score", None), nn.Linear):
        raise BadInput(
            f"{type(model).__name__} has no 'score' head that can be read at every token; use a decoder-only model"
        )
    disable_dropout(model)
    if lora is not None:
        from peft import LoraConfig as PeftLora
        from peft import get_peft_model

        children = [] if AUTO_CLASSES[kind] in LANGUAGE_MODELS else [n for n, _ in model.named_children()]
        heads = [n for n in children if n != model.base_model_prefix]
        adapter = PeftLora(
            r=lora.rank,
            lora_alpha=lora.alpha,
            target_modules=lora.targets,
            lora_dropout=0.0,
            exclude_modules=heads or None,
        )
        model = get_peft_model(model, adapter)
        for name in heads:  # a random head is trained itself
            getattr(model.get_base_model(), name).requires_grad_(True)
    return WRAPPERS[kind](model, attention)


def compile_layers(model: nn.Module) -> None:
    """Compiles each normalisation layer and each MLP by itself, for any number of tokens.

    Their many small operations are limited by memory bandwidth. Attention between them is not compiled, since the
    shapes of packed sequences change with every pass.
    """
    for module in model.modules():
        if type(module).__name__.endswith(COMPILED_LAYERS):
            module.compile(dynamic=True)


def disable_dropout(model: nn.Module) -> None:
    """Sets all dropout probabilities to 0, in modules and in attributes such as ``layerdrop``."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if name.endswith(("dropout", "layerdrop")) and isinstance(value, float):
                setattr(module, name, 0.0)


def base_directory(path: str) -> str:
    """The local directory whose config.json describes the model: ``path``, or the base model of the adapter in it."""
    if (Path(path) / "config.json").is_file():
        return path
    adapter = json.loads((Path(path) / "adapter_config.json").read_text())
    return base_directory(resolve_model(adapter["base_model_name_or_path"]))


def read_config(path: str) -> dict[str, Any]:
    """config.json of a local directory, or of the base model if it holds an adapter.

    Values of its ``text_config`` override those of the top level.
    """
    values = json.loads((Path(base_directory(path)) / "config.json").read_text())
    return {**values, **values.get("text_config", {})}


def has_reward_head(path: str) -> bool:
    """Whether a local directory holds a sequence-classification model, so that its scalar head is a trained one."""
    return any("SequenceClassification" in name for name in read_config(path).get("architectures") or [])


def is_encoder_decoder(path: str) -> bool:
    """Whether a local directory holds an encoder-decoder: T5, BART, Marian and others."""
    return bool(read_config(path).get("is_encoder_decoder"))


def read_context_length(path: str) -> int:
    """The longest sequence that the model takes, in tokens, from its config; 2^30 if the config has no limit."""
    return context_length(read_config(path))


def read_vocab_size(path: str) -> int:
    """The number of rows of the embedding, from the config."""
    return int(read_config(path)["vocab_size"])


def read_generation_eos(path: str) -> list[int]:
    """The end tokens in the model's generation config; empty if it has none."""
    file = Path(path) / "generation_config.json"
    eos = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
