"""What CUDA changes: kernels, graphs, nccl, memory that is shared in turns. `make gpu` runs it before its timings."""

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_ray.models.log_probs import PolicyModel
from rlhf_ray.rollout.engine import Request, Sampling
from rlhf_ray.rollout.kv_cache import CachedDecoder
from rlhf_ray.rollout.transformers_engine import TransformersEngine
from tests.helpers import TINY, metrics_of, rl_job, run_job

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: run `make gpu` where there is one"),
]
SHAPE = {**TINY, "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512}
BOUND = {torch.float32: 1e-4, torch.bfloat16: 0.1}


def made(dtype, **options):
    torch.manual_seed(0)
    config = AutoConfig.for_model(**{**SHAPE, "initializer_range": 0.1, **options})
    return AutoModelForCausalLM.from_config(config, dtype=dtype).cuda().eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [0, 5])
def test_packed_log_probs_and_gradients_are_the_padded_ones(dtype, shared):
    """Flash attention in bfloat16, also where samples share a prompt of five tokens."""
    model = PolicyModel(made(dtype), "packed")
    lengths, draw = [9, 17, 12, 30], torch.Generator().manual_seed(0)
    prompt = torch.randint(0, 512, (5,), generator=draw)
    rows = [torch.cat([prompt, torch.randint(0, 512, (n - 5,), generator=draw)]) for n in lengths]
    tokens, sizes = torch.cat(rows).cuda(), torch.tensor(lengths).cuda()
    at = torch.cat([torch.arange(5, n) + sum(lengths[:i]) for i, n in enumerate(lengths)]).cuda()
    leading = torch.tensor([0, *[shared] * 3]).cuda()
    results = []
    for shared_lengths in (leading, None):
        model.zero_grad()
        log_probs, _ = model(tokens, sizes, at, 1.0, False, shared_lengths)
        log_probs.sum().backward()
        results.append((log_probs.detach(), model.core.lm_head.weight.grad.float().clone()))
        model.use_padded()
    assert (results[0][0] - results[1][0]).abs().max() < BOUND[dtype]
    assert torch.nn.functional.cosine_similarity(results[0][1].flatten(), results[1][1].flatten(), 0) > 0.99


def test_the_engines_log_probs_are_the_learners():
    """Also where a decode step is a CUDA graph, across a load of new weights, and for more prompts than rows."""
    model = made(torch.float32)
    engine = TransformersEngine(model, Sampling(40, 0.9, (-1,)), 4, torch.device("cuda"))
    assert isinstance(engine.decoder, CachedDecoder)
    assert engine.decoder.graphs is not None
    for seed in (0, 1):
        torch.manual_seed(seed)
        engine.load_weights([(n, torch.randn_like(p, device="cpu") * 0.1) for n, p in model.named_parameters()])
        draw = np.random.default_rng(seed)
        requests = [
            Request(id=i, prompt=draw.integers(0, 512, 3 + i), seed=i, group=i, max_new_tokens=40 - 5 * i)
            for i in range(7)
        ]
        engine.add(requests)
        while engine.busy:
            for done in engine.step():
                prompt = requests[done.id].prompt
                plain = engine.log_probs(np.concatenate([prompt, done.tokens]))[len(prompt) :]
                assert np.abs(plain - done.log_probs).max() < 1e-3


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_job_runs_on_the_gpu(stage, tmp_path):
    """Learner, reward and rollout workers on one device, in turns; verified syncs, a resumable end."""
    job = rl_job(model={"init": SHAPE, "tokenizer": "toy", "dtype": "bfloat16"})
    job["rollout"]["engine"] = {"dtype": "bfloat16"}
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job))
    run_job(file, tmp_path / "run", f"learner.zero_stage={stage}", "cluster.device=cuda", timeout=550)
    steps = metrics_of(tmp_path / "run")
    assert len(steps) == 2
    assert all(s["sync/probe_difference"] < 0.3 for s in steps)
