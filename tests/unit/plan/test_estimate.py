"""The estimates of `plan`: formulas against hand numbers, against transformers' own models, and against what peers published."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_ray.cli import main
from rlhf_ray.config import BadInput, apply_overrides, parse
from rlhf_ray.models import attention
from rlhf_ray.models import load as models
from rlhf_ray.plan import calibrate, forecast, memory, stages
from rlhf_ray.plan import text as plan
from rlhf_ray.plan.hardware import GIB, GPUS, cluster, this_machine
from rlhf_ray.plan.requirements import Models, Setting
from rlhf_ray.plan.shape import shape
from tests.benchmarks import rollout_vs_generate
from tests.helpers import TINY, rl_job

SMALL = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 101}
WIDE = {**SMALL, "intermediate_size": 96, "num_key_value_heads": 2}
KINDS = [
    ("llama", WIDE),
    ("llama", {**WIDE, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 8}),
    ("mistral", WIDE),
    ("qwen2", WIDE),
    ("qwen2", {**WIDE, "tie_word_embeddings": True}),
    ("qwen3", {**WIDE, "head_dim": 32}),
    ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 101, "n_positions": 48}),
    ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 80, "vocab_size": 101, "tie_word_embeddings": False}),
    ("gpt_neox", {**SMALL, "intermediate_size": 96}),
    ("gpt_neox", {**SMALL, "intermediate_size": 96, "attention_bias": False}),
]


GIANTS = {
    "llama-2-70b": {
        "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": 32000,
    },
    "qwen2-7b": {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064,
    },
    "qwen2-72b": {
        "model_type": "qwen2", "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": 152064,
    },
}  # fmt: skip


def built(auto, config):
    with torch.device("meta"):
        return auto.from_config(config)


def size(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("kind", "values"), KINDS)
def test_parameters_by_formula_are_those_of_the_model(kind, values):
    config = AutoConfig.for_model(kind, **values)
    found = shape({**values, "model_type": kind})
    assert found.num_parameters == size(built(AutoModelForCausalLM, config))
    assert shape(config.to_dict()) == found  # what a config.json says in full
    scalar = built(AutoModelForSequenceClassification, AutoConfig.for_model(kind, **values, num_labels=1))
    head = sum(p.numel() for n, p in scalar.named_parameters() if n.startswith("score."))
    assert found.scalar_parameters == size(scalar) - head + 64


def test_an_encoder_and_an_unknown_architecture():
    values = {**SMALL, "intermediate_size": 96, "max_position_embeddings": 32}
    model = AutoModel.from_config(AutoConfig.for_model("bert", **values), add_pooling_layer=False)
    assert shape({**values, "model_type": "bert"}).num_parameters == size(model)
    assert shape({"model_type": "mamba"}) is None


def test_published_sizes():
    """Of their model cards: 68.98, 7.62 and 72.7 billion."""
    sizes = {name: shape(values).num_parameters for name, values in GIANTS.items()}
    assert sizes == {"llama-2-70b": 68_976_648_192, "qwen2-7b": 7_615_616_512, "qwen2-72b": 72_706_203_648}


def test_adapters_are_those_of_peft():
    from peft import LoraConfig, get_peft_model

    values = {**WIDE, "model_type": "llama"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **WIDE))
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    assert shape(values).adapter_parameters(4) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def peak_bytes(model, tokens, length, scored):
    """What torch's profiler counts at the peak of a forward and backward pass over sequences of ``length``."""
    from torch.profiler import ProfilerActivity, profile

    ids = torch.randint(0, model.core.config.vocab_size, (tokens,))
    lengths = torch.full((tokens // length,), length)
    at = torch.tensor([i for i in range(tokens) if i % length >= length - scored])
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        (-model(ids, lengths, at)[0].sum()).backward()
    now = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("dtype", "short"), [("float32", False), ("bfloat16", False), ("bfloat16", True)])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
def test_activations_by_formula_are_what_torch_allocates(kind, dtype, checkpointing, short, monkeypatch):
    monkeypatch.setattr(attention, "SHORT", attention.SHORT if short else 0)  # 0: as on a GPU
    values = {
        "llama": {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2,
                  "vocab_size": 300, "tie_word_embeddings": True},
        "gpt2": {"n_embd": 128, "n_layer": 5, "n_head": 4, "n_inner": 320, "vocab_size": 300, "n_positions": 64},
        "gpt_neox": {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 5, "num_attention_heads": 4, "vocab_size": 300},
    }[kind]  # fmt: skip
    config = AutoConfig.for_model(kind, **values, bos_token_id=None, eos_token_id=None)
    model = models.finish(
        "policy", AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)), attention="packed"
    )
    if checkpointing:
        model.core.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    peak_bytes(model, 128, 64, 16)  # first calls allocate what later ones do not
    found = memory.activations(shape({**values, "model_type": kind}), 512, 8 * 63, dtype, checkpointing, wide=short)
    assert sum(found.values()) == pytest.approx(peak_bytes(model, 512, 64, 63), rel=0.1)


def test_the_logits_of_a_large_vocabulary_are_what_torch_allocates():
    values = {**TINY, "vocab_size": 40_000}
    config = AutoConfig.for_model(**{**values, "bos_token_id": None, "eos_token_id": None})
    model = models.finish("policy", AutoModelForCausalLM.from_config(config), attention="packed")
    for tokens in (256, 1024):  # one chunk, and three
        found = memory.activations(shape(values), tokens, tokens * 63 / 64, "float32", False)
        assert sum(found.values()) == pytest.approx(peak_bytes(model, tokens, 64, 63), rel=0.15)
        assert found["logits"] > found["activations"]


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.88)])
def test_model_states_are_those_of_the_zero_paper(stage, gigabytes):
    """Rajbhandari et al. (2020), figure 1: 7.5 billion parameters on 64 GPUs, mixed precision and Adam (K = 12)."""
    n = 7.5e9
    found = memory.states(n, n, "bfloat16", stage, 64, cpu=False)
    gradients = 2 * n / (64 if stage >= 2 else 1)
    assert (sum(found.resident.values()) + gradients) / 1e9 == pytest.approx(gigabytes, rel=0.01)
    assert found.working["gradients"] >= gradients


def test_key_value_bytes_by_hand():
    """Llama-2-70B: 2 x 80 layers x 8 heads x 128 x 2 bytes = 320 KiB a token."""
    assert memory.kv_bytes(shape(GIANTS["llama-2-70b"]), 2) == 320 * 1024
    small = shape({**TINY, "vocab_size": 100})
    parts = memory.embedded_engine(small, 8, 100, "float32", cpu=True)
    assert parts["KV cache"] == 8 * 128 * 2 * 2 * 16 * 4  # rows, room, layers, keys and values, width, bytes
    engine = memory.vllm_engine(shape(GIANTS["llama-2-70b"]), 4, "bfloat16", 30 * GIB, None)
    assert engine["KV cache"] < 0  # a quarter of 138 GB does not fit into 30 GiB


def test_live_rows_are_those_of_a_queue_by_hand():
    assert stages.live_rows([3, 1, 2], 2).tolist() == [2, 2, 2]
    assert stages.live_rows([4, 1, 1, 1, 5], 2).tolist() == [2, 2, 2, 2, 1, 1, 1, 1]
    assert stages.live_rows([2, 2], 8).tolist() == [2, 2]


def test_a_decode_step_is_bound_by_memory_and_then_by_products():
    """7 B in bfloat16 on an H200: 15.2 GB of weights at 4.8 TB/s; the crossing is where rows x 2 N / F passes it (206 rows)."""
    s, device = shape(GIANTS["qwen2-7b"]), cluster("H200").device
    e = stages.efficiency(device)
    rows = np.array([1.0, 4096.0])
    few, many = stages.decode_step(s, rows, np.zeros(2), "bfloat16", device, 1, 0.0)
    used = s.body + s.head
    assert few == pytest.approx(2 * used / (4.8e12 * e.decode_bytes))
    assert many == pytest.approx(4096 * 2 * used / (989e12 * e.share(e.decode_flops, 3584)))


def test_training_is_three_forward_passes_and_recomputation_a_fourth():
    s, on = shape(GIANTS["qwen2-7b"]), cluster("8xH100-80GB")
    seen = stages.Samples(1.0, 1000, 0, 1000)
    forward = stages.passes(s, seen.tokens, seen.squares, seen.read)
    assert forward == 2 * (s.body + s.head) * 1000
    e = stages.efficiency(on.device)
    plain, again = (stages.Learning(s, s.num_parameters, 0.0, "bfloat16", 1, 1, c, 1 << 20) for c in (False, True))
    seconds = [stages.updating(m, seen, 1, on) - e.update_s for m in (plain, again)]
    assert seconds[0] == pytest.approx(3 * forward / (989e12 * e.share(e.learn, 3584)))
    assert seconds[1] == pytest.approx(seconds[0] * 4 / 3)


@pytest.mark.parametrize(
    ("text", "says"), [("8xH900", "known are"), ("A100", "known are A100-40GB, A100-80GB"), ("", "known")]
)
def test_unknown_gpus_are_bad_input(text, says):
    with pytest.raises(BadInput, match=says):
        cluster(text)


def test_gpus_are_found_by_name():
    assert len({g.name for g in GPUS}) == len(GPUS)
    assert (cluster("8 x h100").per_node, cluster("H200").device.name) == (8, "H200-141GB")


# published configurations, on paper ---------------------------------------------------------------------------------


def sft(values, tmp_path, **changes):
    (tmp_path / "config.json").write_text(json.dumps(values))
    job = {"job": "sft", "model": {"path": str(tmp_path), "dtype": "bfloat16", "gradient_checkpointing": True},
           "data": {"path": "rows.jsonl"}, "num_steps": 1}  # fmt: skip
    return parse(apply_overrides(job, [f"{k}={v}" for k, v in changes.items()]), "job")


def on_paper(job, values, gpus, nodes=1):
    on = cluster(gpus, nodes)
    return forecast.forecast(job, Setting(Models(shape(values)), on, forecast.lengths(job)))


def test_llama_70b_with_lora_on_eight_h100(tmp_path):
    """PEFT's guide to DeepSpeed (docs/source/accelerate/deepspeed.md): ZeRO-3, rank 8 on all linear layers, 8 x 2,048 tokens,
    checkpointing, bfloat16: 64 GB on each of 8 H100-80GB, measured."""
    values = GIANTS["llama-2-70b"]
    job = sft(values, tmp_path, **{
        "batch_size": 64, "max_length": 2048, "learner.num_workers": 8, "learner.zero_stage": 3, "learner.micro_batch_tokens": 16384,
        "model.lora.rank": 8, "model.lora.alpha": 16,
    })  # fmt: skip
    found = on_paper(job, values, "8xH100-80GB")
    assert found.taken / 1e9 == pytest.approx(64, rel=0.25)
    assert found.fits


@pytest.mark.parametrize(
    ("model", "gpus", "nodes", "ranks", "fits"),
    [
        # verl's "Resource needed" (docs/perf/device_tuning.rst): 7B on 2 H800 with its optimizer offloaded; this project has no offload
        ("qwen2-7b", "2xH800-80GB", 1, 2, False),
        ("qwen2-7b", "4xH800-80GB", 1, 4, True),
        # the same page: 70B on 32 H800
        ("qwen2-72b", "8xH800-80GB", 4, 32, True),
        ("qwen2-72b", "8xH800-80GB", 1, 8, False),
    ],
)
def test_verl_s_smallest_clusters(tmp_path, model, gpus, nodes, ranks, fits):
    job = sft(GIANTS[model], tmp_path, **{
        "batch_size": 256, "max_length": 1536, "learner.num_workers": ranks, "learner.zero_stage": 3, "learner.micro_batch_tokens": 8192,
    })  # fmt: skip
    assert on_paper(job, GIANTS[model], gpus, nodes).fits is fits


# the command --------------------------------------------------------------------------------------------------------


def small_rl(**changes):
    return parse(rl_job(algorithm={"type": "grpo", "group_size": 4}, **changes), "job")


def test_a_run_calibrates_the_next_prediction():
    """A run that was twice as slow in everything as predicted gives factors of 2, and with them its own seconds."""
    job = small_rl()
    on = this_machine()
    s = shape({**TINY, "vocab_size": 100})
    given = Setting(Models(s), on, forecast.lengths(job))
    where = forecast.layout(forecast.placed(job, on), on)
    said = calibrate.predicted(job, given, where)
    lines = [{f"time/{name}": 2 * seconds for name, seconds in said.items()}] * 3
    found = calibrate.factors(job, given, where, lines)
    assert vars(found) == pytest.approx({"rollout": 2, "annotate": 1, "learn": 2, "sync": 2}, rel=0.02)
    again = calibrate.predicted(job, Setting(Models(s), on, given.lengths, found), where)
    assert again["step"] == pytest.approx(2 * said["step"], rel=0.02)


def written(tmp_path, values, **changes):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(values))
    job = rl_job(algorithm={"type": "grpo"}, **changes)
    job["model"] = {"path": str(tmp_path / "model"), "dtype": "bfloat16"}
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(job))
    return str(file)


def test_plan_says_yes_and_where_the_time_goes(tmp_path, capsys):
    file = written(tmp_path, GIANTS["qwen2-7b"])
    assert main(["plan", file, "--gpus", "8xH100-80GB", "learner.num_workers=8", "rollout.num_workers=8"]) == 0
    found = capsys.readouterr().out
    for text in (
        "7.62 B parameters",
        "memory of each learner worker: weights 14.2 GiB",
        "bottleneck: ",
        "yes: it fits, with ",
    ):
        assert text in found


def test_plan_says_no_and_what_would_do(tmp_path, capsys):
    file = written(tmp_path, GIANTS["qwen2-7b"])
    line = ["plan", file, "--gpus", "8xA100-40GB", "learner.num_workers=8", "rollout.engine.dtype=bfloat16"]
    assert main(line) == 1
    found = capsys.readouterr().out.splitlines()[-1]
    assert found.startswith("no: it needs ")
    options = found.split("it would with ")[1].split()
    assert options == ["learner.zero_stage=3"]
    assert main([*line, *options]) == 0


def test_plan_refuses_what_cannot_be_placed(tmp_path, capsys):
    file = written(tmp_path, GIANTS["qwen2-7b"])
    assert main(["plan", file, "--gpus", "2xH100", "learner.num_workers=4"]) == 1
    assert "no: the job needs 4 GPUs" in capsys.readouterr().out


def test_plan_without_a_formula_says_so_and_is_no_refusal(tmp_path, capsys):
    file = written(tmp_path, {"model_type": "mamba"})
    assert main(["plan", file]) == 0
    assert "no estimate: no formula for model_type mamba" in capsys.readouterr().out


def test_plan_names_a_run_that_does_not_fit(tmp_path, capsys):
    file = written(tmp_path, GIANTS["qwen2-7b"])
    assert main(["plan", file, "--from", str(tmp_path)]) == 2
    assert "give the run directory of a ppo job" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["plan", file, "--gpu"])


def test_larger_clusters_are_simulated(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan, "SCALES", (1, 4))
    file = written(tmp_path, GIANTS["qwen2-7b"])
    assert main(["plan", file, "--gpus", "8xH200", "learner.num_workers=8", "rollout.num_workers=8", "--scale"]) == 0
    assert "  32 GPUs: ahead 0: " in capsys.readouterr().out


ON_H200 = [  # shape, lengths, seconds of an optimizer step on one H200 (LOG.md, 2026-11-27); no constant was fitted to them
    ("0.5B", "equal", 2.782), ("0.5B", "skewed", 0.872), ("1.5B", "equal", 5.710), ("1.5B", "skewed", 1.635),
]  # fmt: skip


def a_benchmarks_shape(name):
    values = rollout_vs_generate.SHAPES[name]
    more = {"vocab_size": 32000, "num_key_value_heads": values["num_attention_heads"], "tie_word_embeddings": True}
    return shape({"model_type": "llama", **values, **more})


@pytest.mark.parametrize(("name", "kind", "seconds"), ON_H200)
def test_learner_steps_that_were_measured_on_a_gpu(name, kind, seconds):
    model, sizes = a_benchmarks_shape(name), rollout_vs_generate.lengths(kind, 256, 1008)
    whole = sizes + 16.0
    seen = stages.Samples(256, whole.sum(), (whole**2).sum(), float(sizes.sum()))
    num = float(model.num_parameters)
    learning = stages.Learning(model, num, num, "bfloat16", 1, 1, False, 32768)
    assert stages.updating(learning, seen, 1, cluster("1xH200")) == pytest.approx(seconds, rel=0.25)


def test_memory_that_was_measured_on_a_gpu():
    """A learner of 0.5B parameters with micro-batches of 22,867 tokens held 48.57 GiB of an H200."""
    model = a_benchmarks_shape("0.5B")
    num = float(model.num_parameters)
    states = memory.states(num, num, "bfloat16", 1, 1, cpu=False)
    acts = memory.activations(model, 22867.0, 20800.0, "bfloat16", False)
    need = memory.Need("learner", states.resident, {**states.working, **acts}, states.step)
    assert need.stays(cpu=False) + need.comes(cpu=False) == pytest.approx(48.57 * GIB, rel=0.25)
