"""All ranks issue the same collectives in the same order, for every objective and ZeRO stage, whatever their work is.

Ranks that do not would hang on GPUs, or mix the buffers of different collectives on gloo.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from rlhf_ray import flops
from rlhf_ray.batch import from_sequences
from rlhf_ray.config import DPO, IPO, KTO, ORPO, LearnerConfig, LoraConfig, ModelConfig, SimPO
from rlhf_ray.config.algorithm import GRPO, PPO, KLConfig
from rlhf_ray.learner.objectives import LossTerm
from rlhf_ray.learner.policy import PolicyObjective, ValueObjective
from rlhf_ray.learner.worker import LearnerWorker, Role
from rlhf_ray.tasks.classify import ClassObjective
from rlhf_ray.tasks.ilql import ImplicitQObjective
from rlhf_ray.tasks.language_model import LanguageModelObjective
from rlhf_ray.tasks.masked import TokenObjective
from rlhf_ray.tasks.preference import DesirableObjective, PairObjective
from rlhf_ray.tasks.qa import SpanObjective
from rlhf_ray.tasks.reward_model import PairwiseObjective, RowObjective, StepObjective
from rlhf_ray.tasks.seq2seq import Seq2SeqObjective
from tests import helpers
from tests.collectives import first_difference, run_ranks

pytestmark = pytest.mark.integration
WORLD = 2
BUDGET = 400  # tokens of a micro-batch
TIMEOUT_S = 240.0
LLAMA = {**helpers.TINY, "num_hidden_layers": 1, "max_position_embeddings": 640, "vocab_size": 50, "pad_token_id": 0}
BERT = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"} | {"model_type": "bert"}
T5 = helpers.T5 | {"num_layers": 1, "vocab_size": 50, "decoder_start_token_id": 0, "pad_token_id": 0}
MODELS = {  # ZeRO-3 takes no model without its head, so each kind has one of its own
    "tied": (AutoModelForCausalLM, LLAMA),
    "untied": (AutoModelForCausalLM, LLAMA | {"tie_word_embeddings": False}),
    "biased": (AutoModelForCausalLM, LLAMA | {"model_type": "phi", "tie_word_embeddings": False}),
    "masked": (AutoModelForMaskedLM, BERT),
    "tags": (AutoModelForTokenClassification, BERT | {"num_labels": 3}),
    "classes": (AutoModelForSequenceClassification, BERT | {"num_labels": 3}),
    "classes at end": (AutoModelForSequenceClassification, LLAMA | {"num_labels": 3}),
    "span": (AutoModelForQuestionAnswering, BERT),
    "seq2seq": (AutoModelForSeq2SeqLM, T5),
}
CLASSES = ("one", "other", "third")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A directory with the MODELS."""
    path = tmp_path_factory.mktemp("models")
    for name, (kind, values) in MODELS.items():
        values = dict(values)
        torch.manual_seed(0)
        kind.from_config(AutoConfig.for_model(values.pop("model_type"), **values)).save_pretrained(path / name)
    return path


def sequences(lengths, groups, unscored=()):
    """Rows of these lengths with every column that an objective reads; nothing is scored in the rows ``unscored``."""
    draw = np.random.default_rng(0)
    tokens = [np.r_[[1, 2], draw.integers(3, 50, n - 2)].astype(np.int32) for n in lengths]
    mask = [np.r_[np.zeros(2), np.full(n - 2, i not in unscored)] for i, n in enumerate(lengths)]
    per_token = {
        name: [mean + spread * draw.standard_normal(n) for n in lengths]
        for name, mean, spread in (
            ("old_log_probs", -3.9, 0.2),
            ("ref_log_probs", -3.9, 0.2),
            ("rollout_log_probs", -3.9, 0.2),
            ("advantages", 0, 1),
            ("returns", 0, 1),
            ("values", 0, 0.1),
            ("step_rewards", 0, 1),
        )
    }
    first = np.r_[True, np.diff(groups) != 0]
    return from_sequences(
        tokens,
        response_mask=mask,
        prompt_length=[2] * len(lengths),
        group=np.array(groups),
        example_id=np.arange(len(lengths)),
        seed=np.arange(len(lengths)),
        labels=np.stack([first, np.full(len(lengths), 2)], 1),
        targets=[t % 2 for t in tokens],
        **per_token,
    )


PAIRS = sequences((300, 290, 100, 20), (0, 0, 1, 1))  # five chunks on one rank, one on the other
UNEVEN = {
    "pairs": PAIRS,
    "unscored": sequences((300, 40), (0, 1), unscored=(1,)),
    "filler": sequences((380, 250, 240), (0, 1, 2)),  # one micro-batch on one rank, two on the other
}
POLICY = PolicyObjective(config=PPO(), kl_coef=0.0, temperature=1.0, max_new_tokens=400, use_importance_weights=False)
ENTROPY = GRPO(entropy_coef=0.01, kl=KLConfig(coef=0.1, where="loss", estimator="k3"))
ILQL = ImplicitQObjective(gamma=0.9, expectile=0.8, conservative_coef=0.1, behaviour_coef=0.5)
ANY_ROWS = {
    "ppo": ("actor", POLICY),
    "grpo": ("actor", replace(POLICY, config=ENTROPY, kl_coef=0.1, use_importance_weights=True)),
    "grpo adapter": ("adapted", replace(POLICY, config=ENTROPY, kl_coef=0.1)),
    "grpo bias": ("biased", replace(POLICY, config=ENTROPY, kl_coef=0.1)),
    "value": ("critic", ValueObjective(0.2)),
    "sft": ("actor", LanguageModelObjective(neftune_alpha=5.0)),
    "kto": ("actor", DesirableObjective(KTO())),
    "ilql": ("values", ILQL),
    "ilql heads": ("values", replace(ILQL, behaviour_coef=0.0)),
    "reward labelled": ("critic", RowObjective("labelled")),
    "reward scores": ("critic", RowObjective("scores")),
    "reward steps": ("critic", StepObjective()),
    "masked": ("masked", TokenObjective("masked")),
    "tag": ("tags", TokenObjective("tag")),
    "classify": ("classes", ClassObjective((1.0, 2.0, 1.0))),
    "classify decoder": ("classes at end", ClassObjective((1.0, 2.0, 1.0))),
    "qa": ("span", SpanObjective(5)),
    "seq2seq": ("seq2seq", Seq2SeqObjective(max_new_tokens=4)),
}
ON_PAIRS = {
    "dpo": ("actor", PairObjective(DPO())),
    "ipo": ("actor", PairObjective(IPO())),
    "orpo": ("actor", PairObjective(ORPO())),
    "simpo": ("actor", PairObjective(SimPO())),
    "reward pairs": ("critic", PairwiseObjective()),
}


def roles(models):
    """A role for each kind of model."""

    def role(name, kind, model, **more):
        config = ModelConfig(path=str(models / model), lora=more.pop("lora", None))
        return Role(name=name, kind=kind, model=config, lr=more.pop("lr", 0.1), **more)

    return [
        role("actor", "policy", "tied"),
        role("reference", "policy", "tied", lr=None),
        role("critic", "scalar", "tied"),
        role("adapted", "policy", "untied", lora=LoraConfig(rank=2, targets=["lm_head", "q_proj"])),
        role("biased", "policy", "biased"),
        role("values", "values", "untied", target_rate=0.3),
        role("masked", "masked", "masked"),
        role("tags", "tags", "tags", labels=CLASSES),
        role("classes", "classes", "classes", labels=CLASSES),
        role("classes at end", "classes", "classes at end", labels=CLASSES),
        role("span", "span", "span"),
        role("seq2seq", "seq2seq", "seq2seq"),
    ]


def every_objective(rank, port, recorder, models, stages):
    """An update of every objective on unequal work at each stage, and all that runs without gradients."""
    flops.HEAD_CHUNK_LOGITS = 1  # chunks of 128 rows, as from a vocabulary of 131,072 on
    with recorder:
        for stage in stages:
            config = LearnerConfig(zero_stage=stage, optimizer="sgd", micro_batch_tokens=BUDGET, num_workers=WORLD)
            worker = LearnerWorker(
                config=config, roles=roles(models), device="cpu", num_threads=1, deadline_s=TIMEOUT_S / 8
            )
            recorder.stage = f"ZeRO-{stage} start"
            worker.start(rank, WORLD, "127.0.0.1", port)
            for rows_name, rows in UNEVEN.items():
                objectives = ANY_ROWS | ON_PAIRS if rows_name == "pairs" else ANY_ROWS
                recorder.stage = f"ZeRO-{stage} annotate, {rows_name}"
                worker.annotate(rows, 1.0, ["old_log_probs", "ref_log_probs", "values"])
                for name, (role, objective) in objectives.items():
                    recorder.stage = f"ZeRO-{stage} {name}, {rows_name}"
                    term = LossTerm(objective=objective, coef=1.0, batch=rows, rows=[np.arange(len(rows))])
                    worker.update(role, [term])
                    recorder.stage += ", evaluated"
                    worker.evaluate(role, objective, rows)
                    if hasattr(objective, "predict"):
                        recorder.stage += ", predicted"
                        worker.predict(role, objective, rows)
            recorder.stage = f"ZeRO-{stage} sync"
            list(worker.sync_weights(1, (np.arange(10, dtype=np.int32), np.arange(5, dtype=np.int32)), 1.0, 0.1))


def test_all_ranks_issue_the_same_collectives(models, tmp_path):
    records, errors = run_ranks(every_objective, WORLD, tmp_path, models, (0, 1, 2, 3), timeout_s=TIMEOUT_S)
    difference = first_difference(*records)
    assert difference is None, difference
    assert errors == [None, None]
    for stage in range(4):
        for name in ANY_ROWS | ON_PAIRS:
            assert records[0][f"ZeRO-{stage} {name}, pairs"]
    for name, num_parameters in (("grpo bias", 50 * 32 + 50), ("grpo adapter", 50 * 32 + 2 * (50 + 32))):
        gathers = [
            call for call in records[0][f"ZeRO-3 {name}, pairs"] if f"allgather_base_ float32[{num_parameters}]" in call
        ]
        assert (
            len(gathers) == 2
        )  # of the head, its bias and adapters: one in the forward pass, one in the backward pass
