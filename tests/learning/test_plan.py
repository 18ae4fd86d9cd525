"""What `plan` says a learner takes, against the peak of a real one: resident memory within a quarter."""

import multiprocessing
import os

import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_ray.batch import from_sequences
from rlhf_ray.config import LearnerConfig, ModelConfig, parse
from rlhf_ray.learner.objectives import LossTerm
from rlhf_ray.learner.worker import LearnerWorker, Role
from rlhf_ray.plan import requirements as needs
from rlhf_ray.plan.shape import shape_of
from rlhf_ray.tasks.language_model import LanguageModelObjective

pytestmark = [pytest.mark.learning, pytest.mark.timeout(1800)]
LENGTH, TOKENS = 128, 2048
VALUES = {
    "model_type": "llama", "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 8, "vocab_size": 8192, "tie_word_embeddings": True, "max_position_embeddings": 2048,
}  # fmt: skip


def learn(config, model, answers):
    """Two updates of two micro-batches each in a process of its own; the most memory it ever held goes into ``answers``."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    worker = LearnerWorker(
        config=config,
        roles=[Role(name="actor", kind="policy", model=model, lr=1e-5)],
        device="cpu",
        num_threads=2,
        deadline_s=900.0,
    )
    worker.start(0, 1, "127.0.0.1", worker.free_port())
    draw = np.random.default_rng(0)
    rows = [draw.integers(0, 8192, LENGTH).astype(np.int32) for _ in range(2 * TOKENS // LENGTH)]
    batch = from_sequences(rows, response_mask=[np.r_[0, np.ones(LENGTH - 1)] for _ in rows])
    term = LossTerm(objective=LanguageModelObjective(), coef=1.0, batch=batch, rows=[np.arange(len(batch))])
    for _ in range(2):
        worker.update("actor", [term])
    with open("/proc/self/status") as status:
        answers.put(next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")))


@pytest.mark.parametrize(("stage", "checkpointing"), [(0, False), (1, False), (1, True), (2, False), (3, False)])
def test_the_peak_of_a_learner(tmp_path, stage, checkpointing):
    values = {k: v for k, v in VALUES.items() if k != "model_type"}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **values)).save_pretrained(tmp_path)
    model = ModelConfig(path=str(tmp_path), gradient_checkpointing=checkpointing)
    config = LearnerConfig(zero_stage=stage, micro_batch_tokens=TOKENS)
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=learn, args=(config, model, answers))
    process.start()
    most = answers.get(timeout=900)
    process.join()
    job = parse({
        "job": "sft", "model": model.model_dump(), "learner": config.model_dump(), "data": {"path": "x"}, "num_steps": 1,
        "batch_size": 2 * TOKENS // LENGTH, "max_length": LENGTH,
    }, "job")  # fmt: skip
    need = needs.learner(job, needs.Models(shape_of(VALUES)), cpu=True, per_node=1)
    assert need.resident_bytes(cpu=True) + need.peak_extra_bytes(cpu=True) == pytest.approx(most, rel=0.25)
