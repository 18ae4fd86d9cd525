"""Models from a local Hugging Face directory: causal LMs, scalar models, random ones.

Everything that runs is loaded from a directory, so that every role and every ZeRO stage starts from the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
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
from .heads import ClassModel, SpanModel, TokenModel
from .log_probs import PolicyModel, Ragged, ScalarModel
from .seq2seq import Seq2SeqModel
from .values import ValueModel

CLASSES: dict[str, Any] = {
    "policy": AutoModelForCausalLM,
    "scalar": AutoModelForSequenceClassification,
    "masked": AutoModelForMaskedLM,
    "classes": AutoModelForSequenceClassification,
    "tags": AutoModelForTokenClassification,
    "span": AutoModelForQuestionAnswering,
    "values": AutoModelForCausalLM,
    "seq2seq": AutoModelForSeq2SeqLM,
}
FUSED = ("RMSNorm", "MLP")  # ends of class names, as transformers gives them
WHOLE = (AutoModelForCausalLM, AutoModelForSeq2SeqLM)  # the head is the language model's own
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


def find(path: str) -> str | None:
    """The local directory of a model; None for a name that may be a Hugging Face id. Raises BadInput where it is neither."""
    local = Path(path).expanduser()
    if local.is_dir():
        if not (local / "config.json").is_file() and not (local / "adapter_config.json").is_file():
            raise BadInput(f"{path}: no config.json there; a model directory in Hugging Face format is needed")
        return str(local.resolve())
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise BadInput(f"{path}: no such model directory")
    return None


def resolve(path: str, revision: str | None = None) -> str:
    """The local directory of a model: itself, or the snapshot of a Hugging Face id. Raises BadInput where there is none."""
    found = find(path)
    if found is not None:
        return found
    try:
        return snapshot_download(path, revision=revision)
    except Exception as error:
        raise BadInput(
            f"{path}: neither a directory nor a model that could be downloaded ({type(error).__name__}: {error})"
        ) from None


def create(
    config: ModelConfig, directory: str, tokenizer: Any, seed: int, kind: str = "policy", labels: tuple[str, ...] = ()
) -> str:
    """Writes a random model of ``config.init`` with the tokenizer's vocabulary to ``directory``, and returns it.

    Raises BadInput where transformers does not know the model type or a value.
    """
    values = {**(config.init or {}), **_labels(kind, labels)}
    architecture = values.pop("model_type")
    ids = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad")}
    if kind == "seq2seq":  # a target begins with the padding token, as T5's and Marian's do, and no end is forced on it
        pad = ids["eos_token_id"] if ids["pad_token_id"] is None else ids["pad_token_id"]
        ids |= {"pad_token_id": pad, "decoder_start_token_id": pad, "forced_eos_token_id": None}
    try:
        settings = AutoConfig.for_model(architecture, **{"vocab_size": len(tokenizer), **ids, **values})
        torch.manual_seed(seed)
        model = CLASSES[kind].from_config(settings, dtype=torch.float32)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise BadInput(f"model.init: {error}") from None
    disable_progress_bar()  # of a single file
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def load(
    kind: str,
    path: str,
    *,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    attention: str = "packed",
    lora: LoraConfig | None = None,
) -> Any:
    """A PolicyModel, ScalarModel or ValueModel (``kind`` 'policy', 'scalar', 'values' with new heads) of a directory, dropout off.

    Raises BadInput if the architecture has no such head.
    """
    model = pretrained(kind, path, dtype=dtype, trust_remote_code=trust_remote_code)
    return finish(kind, model, attention=attention, lora=lora)


def _labels(kind: str, labels: tuple[str, ...]) -> dict[str, Any]:
    """Values of transformers' config for a head with one output, or with one for each label."""
    if kind == "scalar":
        return {"num_labels": 1}
    return {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}} if labels else {}


def pretrained(
    kind: str, path: str, *, dtype: torch.dtype, trust_remote_code: bool = False, labels: tuple[str, ...] = ()
) -> Any:
    """The transformers model of a local directory; an adapter is merged into its base. ``labels`` are a head's classes."""
    extra = _labels(kind, labels)
    if (Path(path) / "adapter_config.json").is_file():
        from peft import AutoPeftModelForCausalLM, AutoPeftModelForSeq2SeqLM

        if CLASSES[kind] not in WHOLE:
            raise BadInput(
                f"{path}: an adapter cannot be a scalar model; save it merged first (peft: merge_and_unload)"
            )
        adapted = AutoPeftModelForSeq2SeqLM if kind == "seq2seq" else AutoPeftModelForCausalLM
        return adapted.from_pretrained(path, dtype=dtype).merge_and_unload()
    try:
        return CLASSES[kind].from_pretrained(path, dtype=dtype, trust_remote_code=trust_remote_code, **extra)
    except (ValueError, OSError) as error:
        raise BadInput(f"{path}: {error}") from None


def skeleton(
    kind: str, path: str, *, dtype: torch.dtype, trust_remote_code: bool = False, labels: tuple[str, ...] = ()
) -> Any:
    """The architecture of a local directory without its weights (built under ``zero.Init`` at ZeRO-3).

    Raises BadInput for an adapter, whose merged weights are in no file that could be read tensor by tensor.
    """
    if (Path(path) / "adapter_config.json").is_file():
        raise BadInput(
            f"{path} is an adapter, and learner.zero_stage: 3 reads whole models only; take stage 2 or less, or merge the "
            "adapter into its base first"
        )
    extra = _labels(kind, labels)
    settings = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **extra)
    with no_init_weights():  # a shard may lack the row of the padding token that would be set to 0
        model = CLASSES[kind].from_config(settings, dtype=dtype, trust_remote_code=trust_remote_code)
    model.tie_weights()
    return model


def tensors(path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The saved tensors of a local directory, one in memory at a time. Raises BadInput without safetensors files."""
    files = sorted(Path(path).glob("*.safetensors"))
    if not files:
        raise BadInput(f"{path}: no .safetensors files there; ZeRO-3 reads weights tensor by tensor from them")
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                yield name, opened.get_tensor(name)


def finish(kind: str, model: Any, *, attention: str, lora: LoraConfig | None = None) -> Any:
    """Head, adapters, dropout and wrapper of a freshly built model. Raises BadInput where there is no head to train."""
    if kind == "scalar" and not isinstance(getattr(model, "score", None), nn.Linear):
        raise BadInput(f"{type(model).__name__} has no 'score' head to read at every token; use a decoder-only model")
    without_dropout(model)
    if lora is not None:
        from peft import LoraConfig as PeftLora
        from peft import get_peft_model

        whole = CLASSES[kind] in WHOLE
        heads = [] if whole else [n for n, _ in model.named_children() if n != model.base_model_prefix]
        adapter = PeftLora(
            r=lora.rank,
            lora_alpha=lora.alpha,
            target_modules=lora.targets,
            lora_dropout=0.0,
            exclude_modules=heads or None,
        )
        model = get_peft_model(model, adapter)
        for name in heads:  # drawn at random, so trained itself
            getattr(model.get_base_model(), name).requires_grad_(True)
    return WRAPPERS[kind](model, attention)


def fuse(model: nn.Module) -> None:
    """Compiles the parts whose many small operations wait for memory, each by itself and for any number of tokens: what lies
    between them (attention over packed sequences) changes from pass to pass."""
    for module in model.modules():
        if type(module).__name__.endswith(FUSED):
            module.compile(dynamic=True)


def without_dropout(model: nn.Module) -> None:
    """Sets every dropout probability to 0, in modules and in attributes such as ``attention_dropout`` or ``layerdrop``."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if name.endswith(("dropout", "layerdrop")) and isinstance(value, float):
                setattr(module, name, 0.0)


def base(path: str) -> str:
    """The local directory whose config.json describes the model: ``path``, or the base of the adapter it holds."""
    if (Path(path) / "config.json").is_file():
        return path
    return base(resolve(json.loads((Path(path) / "adapter_config.json").read_text())["base_model_name_or_path"]))


def settings(path: str) -> dict[str, Any]:
    """config.json of a local directory (of the base model, where it holds an adapter)."""
    values = json.loads((Path(base(path)) / "config.json").read_text())
    return {**values, **values.get("text_config", {})}


def has_head(path: str) -> bool:
    """Whether a local directory holds a sequence-classification model, so that its scalar head is a trained one."""
    return any("SequenceClassification" in name for name in settings(path).get("architectures") or [])


def is_encoder_decoder(path: str) -> bool:
    """Whether a local directory holds an encoder-decoder: T5, BART, Marian and others."""
    return bool(settings(path).get("is_encoder_decoder"))


def context_length(path: str) -> int:
    """Most tokens the model takes, from its config; very large where the config does not say."""
    values = settings(path)
    return int(values.get("max_position_embeddings") or values.get("n_positions") or 1 << 30)


def vocab_size(path: str) -> int:
    """Rows of the embedding, from the config."""
    return int(settings(path)["vocab_size"])


def generation_eos(path: str) -> list[int]:
    """End tokens that the model's generation config names, if it has one."""
    file = Path(path) / "generation_config.json"
    found = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
    return [] if found is None else [found] if isinstance(found, int) else list(found)
