"""Every kind of job has a record, and the records are light to import."""

import subprocess
import sys
from typing import get_args

import pytest

from rlhf_ray.config import BadInput, parse
from rlhf_ray.config.jobs import Single
from rlhf_ray.jobs.kinds import KINDS, kind_of
from rlhf_ray.jobs.preflight import check_job
from tests.helpers import TINY, rl_job


def test_every_member_of_the_union_has_a_kind_and_every_kind_a_member():
    names = {str(member.model_fields["job"].default) for member in get_args(Single)}
    assert set(KINDS) == names | {"pipeline"}


def test_the_kinds_bring_neither_torch_nor_ray():
    code = "import sys, rlhf_ray.jobs.kinds, rlhf_ray.plan.text; print({'torch', 'ray', 'transformers'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "set()"


def test_an_optional_package_is_looked_for_before_anything_starts(monkeypatch):
    job = parse(rl_job(log={"wandb": "project"}), "job")
    assert set(kind_of(job).needs(job).packages) == {"wandb"}
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(BadInput, match=r"pip install 'rlhf-ray\[wandb\]'"):
        check_job(job)


def test_what_a_job_needs_by_hand():
    job = parse(rl_job(algorithm={"type": "grpo", "group_size": 4, "num_mini_batches": 2}), "job")
    needs = kind_of(job).needs(job)
    assert needs.demand.counts == {"learner": 1, "rollout": 1, "reward": 1}
    assert (needs.training.sequences, needs.training.max_tokens) == (8 * 4 // 2, 32 + 8)
    assert needs.critic is None
    pairs = parse(
        {
            "job": "dpo",
            "model": {"init": TINY, "tokenizer": "toy"},
            "data": {"path": "toy:reviews/pairs"},
            "num_steps": 1,
            "batch_size": 8,
        },
        "job",
    )
    assert kind_of(pairs).needs(pairs).training.sequences == 16  # a pair is two sequences


def test_a_missing_8_bit_optimizer_is_found_before_anything_starts(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    with pytest.raises(BadInput, match=r"pip install 'rlhf-ray\[8bit\]'"):
        check_job(parse(rl_job(learner={"optimizer": "adamw_8bit"}), "job"))


@pytest.mark.parametrize("change", [
    {"learner": {"optimizer": "muon", "zero_stage": 0}},
    {"learner": {"optimizer": "muon"}, "model": {**rl_job()["model"], "lora": {"rank": 2}}},
])  # fmt: skip
def test_muon_without_whole_matrices_is_refused(change):
    with pytest.raises(BadInput, match="muon updates whole matrices, at ZeRO 1 to 3"):
        parse(rl_job(**change), "job")
