"""Checks of a job before anything runs, without a model, torch, Ray or the user's code.

`rlhf-ray train`, `plan`, `data` and `tune` make them. What needs the tokenizer, the rows of the data or the weights is
checked by `train` when it has loaded them: tokens outside the vocabulary, rows that are too long, an adapter at ZeRO-3.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import BadInput, DataConfig, FunctionReward, Job, ModelConfig, RuleReward, SingleJob
from ..config.jobs import STAGE
from ..data import examples
from ..data.context import check_prompt_context, check_row_context
from ..models.directory import context_length, fetch_config, find_local_model, has_experts
from ..rewards.rules import bind_rule
from ..run.reader import read_manifest
from .kind import JobNeeds
from .kinds import kind_of

NO_VALUES: Mapping[str, Any] = {}
ATTENTION_LAYERS = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "lm_head"})


def check_job(job: Job, *, packages: bool = True) -> None:
    """Raises BadInput for what a job, or any stage that is still to run, needs and does not find.

    Checked are: data files, model directories, the model's context, reward functions, rules and, if ``packages``, the
    optional packages that are installed here.
    """
    stages = kind_of(job).stages(job)
    for name, stage in stages.items():
        if name and read_manifest(Path(job.run.dir).absolute() / name).get("state") == "finished":
            continue
        try:
            _check_single(stage, stages, packages)
        except BadInput as error:
            if not name:
                raise
            raise BadInput(f"stages.{name}: {error}") from None


def _check_single(job: SingleJob, stages: Mapping[str, SingleJob], packages: bool) -> None:
    needs = kind_of(job).needs(job)
    for option, section in needs.sections.items():
        _find(section, option)
    for package, sentence in needs.packages.items() if packages else ():
        if importlib.util.find_spec(package) is None:
            raise BadInput(sentence)
    policy_paths = [] if needs.model is None or needs.model.path is None else [needs.model.path]
    for path in [*policy_paths, *needs.model_paths, *needs.reward_models]:
        if not path.startswith(STAGE):
            find_local_model(path)
    for term in [] if needs.rewards is None else needs.rewards.terms:
        if isinstance(term, FunctionReward):
            find_function(term)
        if isinstance(term, RuleReward):
            bind_rule(term.rule, term.options)  # its name and its options
    _check_context(needs, stages)
    if needs.model is not None and needs.model.lora is not None:
        _check_adapters(needs.model.lora.targets, _model_values(needs.model, stages))


def _check_adapters(targets: list[str] | str, values: Mapping[str, Any]) -> None:
    """Raises BadInput if adapters would be put on experts or their router: these are no linear layers."""
    if has_experts(values) and not ATTENTION_LAYERS.issuperset([targets] if isinstance(targets, str) else targets):
        raise BadInput(
            "model.lora.targets: adapters on the experts of a mixture of experts are not supported; take "
            "model.lora.targets=[q_proj, k_proj, v_proj, o_proj], or train without model.lora"
        )


def _check_context(needs: JobNeeds, stages: Mapping[str, SingleJob]) -> None:
    """Raises BadInput if prompts and answers, or rows, can exceed the context that the model's config.json names."""
    values = NO_VALUES if needs.model is None else _model_values(needs.model, stages)
    context = context_length(values)
    if needs.generation is not None:
        encoder_decoder = needs.training is None and bool(values.get("is_encoder_decoder"))
        max_new_tokens = needs.generation.rollout.max_new_tokens
        for option, max_prompt_tokens in needs.prompt_limits.items():
            check_prompt_context(option, max_prompt_tokens, max_new_tokens, context, encoder_decoder)
    elif needs.training is not None:
        check_row_context(needs.training.max_tokens, context)


def _model_values(model: ModelConfig, stages: Mapping[str, SingleJob]) -> Mapping[str, Any]:
    """The values of the model's config.json, or those of `model.init`; empty if there is no config.json to read yet."""
    if model.init is not None:
        return model.init
    path = str(model.path)
    if path.startswith(STAGE):
        stage = stages[path.removeprefix(STAGE).partition("/")[0]]
        earlier = kind_of(stage).needs(stage).model
        return NO_VALUES if earlier is None else _model_values(earlier, stages)
    try:
        return fetch_config(path, model.revision)
    except (OSError, ValueError):  # it cannot be downloaded now; `train` says so when it needs the model
        return NO_VALUES


def _find(section: DataConfig, option: str) -> None:
    """Raises BadInput unless every source is there that no earlier stage writes."""
    for key, source in examples.named(section, option):
        if not source.path.startswith(STAGE):
            examples.find(source, key)


def find_function(term: FunctionReward) -> None:
    """Raises BadInput unless the file of a reward function can be parsed and binds its name somewhere; imports nothing."""
    file, _, function = term.path.rpartition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        raise BadInput(f"reward '{term.name}': no such file {file}")
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise BadInput(f"reward '{term.name}': {file}:{getattr(error, 'lineno', 1)}: {error}; fix the file") from None
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    if function not in names and "*" not in names:
        functions = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        raise BadInput(
            f"reward '{term.name}': no function '{function}' in {file}; it has {', '.join(functions) or 'none'}"
        )
