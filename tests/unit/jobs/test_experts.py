"""What the checks before a run and `plan` say of a mixture of experts."""

import pytest

from rlhf_ray.config import BadInput, ModelConfig, parse
from rlhf_ray.jobs.preflight import check_job
from rlhf_ray.plan.model_shapes import NoEstimate, model_shape
from tests.experts import EXPERTS
from tests.helpers import TINY, rl_job


def job(init, **lora):
    return parse(rl_job(model={"init": init, "tokenizer": "toy", "lora": {"rank": 2, **lora}}), "job")


@pytest.mark.parametrize("architecture", EXPERTS)
def test_adapters_on_experts_are_refused(architecture):
    init = {"model_type": architecture, **EXPERTS[architecture]}
    for lora in ({}, {"targets": ["q_proj", "gate_proj", "up_proj"]}, {"targets": ["gate"]}, {"targets": ["w2"]}):
        with pytest.raises(BadInput, match="adapters on the experts"):
            check_job(job(init, **lora))
    check_job(job(init, targets=["q_proj", "v_proj"]))
    check_job(job(TINY))


@pytest.mark.parametrize("architecture", EXPERTS)
def test_plan_says_that_there_is_no_expert_parallelism(architecture):
    model = ModelConfig(init={"model_type": architecture, **EXPERTS[architecture]}, tokenizer="toy")
    with pytest.raises(NoEstimate, match="there is no expert parallelism"):
        model_shape(model, {})
