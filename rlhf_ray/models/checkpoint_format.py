"""A model's weights by their names in memory and in checkpoint files, by transformers' rules.

The names and shapes differ for mixtures of experts. transformers stacks the experts of a layer in memory, and writes
each of them by itself, as their authors did. For example, with 4 experts of inner size 16 and a hidden size of 32:

    in memory: mlp.experts.gate_up_proj (4, 32, 32)
    in files:  mlp.experts.0.gate_proj.weight (16, 32), mlp.experts.0.up_proj.weight (16, 32), and so on to expert 3
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from ..config import BadInput

RULES = "_weight_conversions"  # the attribute in which from_pretrained leaves the rules that it used


def find_saved_tensors(path: str) -> dict[str, Path]:
    """The file of each tensor in a local directory, by the name in the file.

    Raises BadInput if there are no safetensors files.
    """
    files = sorted(Path(path).glob("*.safetensors"))
    if not files:
        raise BadInput(
            f"{path}: has no .safetensors files, from which learner.zero_stage: 3 reads the weights; save the model as "
            "safetensors"
        )
    saved = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            saved.update(dict.fromkeys(opened.keys(), file))
    return saved


def note_rules(model: Any, saved_names: Iterable[str]) -> None:
    """Leaves in a model that was built without its files the rules that ``from_pretrained`` would have used."""
    rules = get_model_conversion_mapping(model)
    for _ in _names_in_memory(model, rules, saved_names):
        pass
    setattr(model, RULES, [rule for rule in rules if rule.was_used()])


def read_parameters(model: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """Name in memory and tensor of everything in a local directory that the model has.

    A stack of experts is in host memory as a whole; otherwise one tensor at a time is. The model's rules are known
    (:func:`note_rules`). Raises BadInput if there are no safetensors files.
    """
    saved = find_saved_tensors(path)
    rules, in_memory = getattr(model, RULES), model.state_dict().keys()
    parts: dict[str, list[tuple[str, str | None]]] = defaultdict(list)  # saved names and patterns, by name in memory
    saved_names = sorted(saved, key=dot_natural_key)  # the order of a stack's experts
    for saved_name, (name, pattern) in zip(saved_names, _names_in_memory(model, rules, saved_names), strict=True):
        parts[name].append((saved_name, pattern))
    converters = {
        pattern: rule for rule in rules if isinstance(rule, WeightConverter) for pattern in rule.source_patterns
    }
    for name, sources in parts.items():
        if name not in in_memory:
            continue
        converter = None
        for saved_name, pattern in sources:
            with safe_open(saved[saved_name], framework="pt") as opened:
                tensor = opened.get_tensor(saved_name)
            if pattern is None:
                yield name, tensor
                continue
            converter = converter or deepcopy(converters[pattern])
            converter.add_tensor(name, saved_name, pattern, tensor)
        if converter is not None:
            for full_name, value in converter.convert(name, model=model, config=model.config).items():
                yield full_name, value[0] if isinstance(value, list) else value


def _names_in_memory(model: Any, rules: Sequence[Any], saved_names: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """The model's name for each saved tensor, and the pattern of the converter that it goes through, if any."""
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    in_memory = model.state_dict()
    for name in saved_names:
        yield rename_source_key(name, renamings, converters, model.base_model_prefix, in_memory)


def in_checkpoint_format(
    model: Any, names: Iterable[str], tensors: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of each as ``save_pretrained`` writes them, as soon as all parts of it have come.

    ``names`` are those in memory of all ``tensors`` that may come.
    """
    reversed_rules = [rule.reverse_transform() for rule in reversed(getattr(model, RULES, None) or [])]
    renamings = [rule for rule in reversed_rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in reversed_rules if isinstance(rule, WeightConverter)]
    target = {name: rename_source_key(name, renamings, converters, reverse=True)[0] for name in names}
    missing = Counter(target.values())
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors:
        key = target[name]
        parts[key][name] = tensor
        missing[key] -= 1
        if not missing[key]:
            yield from revert_weight_conversion(model, parts.pop(key)).items()


def saved_buffers(model: Any) -> dict[str, Tensor]:
    """The buffers that a checkpoint has, by their names in memory."""
    names = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in names}


def checkpoint_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of the model's checkpoint, by the name there; the model may be on the meta device."""
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()} | saved_buffers(model)
    return {name: tuple(t.shape) for name, t in in_checkpoint_format(model, tensors, tensors.items())}
