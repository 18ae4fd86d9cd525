"""Settings of DeepSpeed, optimizers, learning rates over a run, and the network interface that ranks meet at."""

import socket
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_ray.config import BadInput, LearnerConfig
from rlhf_ray.learner import zero
from rlhf_ray.learner.optimizers import make_optimizer
from rlhf_ray.models.load import wrap_model
from tests.helpers import TINY


def rates(num_updates, steps, state=None):
    """Learning rates of an SGD optimizer under a linear schedule, and the state after it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = LambdaLR(optimizer, zero.lr_schedule(LearnerConfig(schedule="linear", warmup_steps=1), num_updates))
    if state is not None:
        optimizer.load_state_dict(state[0])
        scheduler.load_state_dict(state[1])
        fake = SimpleNamespace(lr_scheduler=scheduler, load_checkpoint=lambda *a, **k: ("here", {}))
        zero.load_shards(fake, "directory", "actor")
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found, (optimizer.state_dict(), scheduler.state_dict())


def test_a_job_that_is_made_longer_follows_the_longer_schedule():
    short, state = rates(4, 4)
    longer, _ = rates(8, 8)
    assert short == pytest.approx([0.5, 1.0, 2 / 3, 1 / 3])
    assert rates(8, 4, state)[0] == pytest.approx(longer[4:])
    assert rates(4, 1, rates(4, 2)[1])[0] == short[2:3]


def test_the_interface_of_an_address_is_the_one_that_reaches_it():
    """gloo is told this one; the host's name may resolve to 127.0.0.1."""
    assert zero.network_interface("127.0.0.1") == "lo"
    for name, found in psutil.net_if_addrs().items():
        for own in [a.address for a in found if a.family == socket.AF_INET and psutil.net_if_stats()[name].isup]:
            assert zero.network_interface(own) == name


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_deepspeed_settings_of_each_stage_and_device(stage, device):
    """On a GPU communication overlaps with computation where DeepSpeed allows it; a CPU has nothing to overlap with."""
    zero_settings = zero.deepspeed_config(LearnerConfig(zero_stage=stage), torch.float32, device)["zero_optimization"]
    assert zero_settings["stage"] == stage
    assert zero_settings["overlap_comm"] is (device == "cuda" and stage >= 2)
    on_gpu = device == "cuda" and stage == 3
    assert zero_settings["stage3_param_persistence_threshold"] == (100_000 if on_gpu else 0)
    assert zero_settings.get("stage3_prefetch_bucket_size") == (100_000_000 if on_gpu else None)
    assert "zero_hpz_partition_size" not in zero_settings


@pytest.mark.parametrize(("dtype", "stage", "accumulated"), [
    (torch.bfloat16, 1, None), (torch.bfloat16, 2, "fp32"), (torch.bfloat16, 3, "fp32"), (torch.float32, 3, None),
])  # fmt: skip
def test_deepspeed_sums_gradients_of_bfloat16_models_in_float32(dtype, stage, accumulated):
    settings = zero.deepspeed_config(LearnerConfig(zero_stage=stage), dtype)
    assert settings.get("data_types", {}).get("grad_accum_dtype") == accumulated
    assert settings["bf16"] == {"enabled": dtype == torch.bfloat16}


def test_weights_are_kept_on_each_node_only_where_there_are_several():
    def partition(stage, ranks_per_node, node_copies=True):
        config = LearnerConfig(zero_stage=stage, num_workers=16, node_copies=node_copies)
        settings = zero.deepspeed_config(config, torch.bfloat16, "cuda", ranks_per_node)
        return settings["zero_optimization"].get("zero_hpz_partition_size")

    assert partition(3, 8) == 8
    assert partition(3, 16) is None  # one node
    assert partition(3, 1) is None  # its ranks do not follow each other
    assert partition(2, 8) is None
    assert partition(3, 8, node_copies=False) is None


@pytest.mark.parametrize(
    ("hosts", "count"), [("aabb", 2), ("aaaa", 4), ("abab", 1), ("aab", 1), ("abb", 1), ("aabbaa", 1), ("a", 1)]
)
def test_ranks_of_a_node_count_if_they_follow_each_other(hosts, count):
    assert zero.ranks_on_each_node(list(hosts)) == count


def test_muon_is_not_clipped_and_gets_whole_gradients():
    settings = zero.deepspeed_config(LearnerConfig(zero_stage=3, optimizer="muon"), torch.bfloat16)
    assert settings["gradient_clipping"] == 0.0
    assert settings["zero_optimization"]["reduce_scatter"] is False


def test_muon_takes_the_matrices_of_hidden_layers():
    """Embedding and head, tied or not, and vectors are AdamW's; rates are scaled by the matrices' columns."""
    config = AutoConfig.for_model("llama", vocab_size=50, **{k: v for k, v in TINY.items() if k != "model_type"})
    for tied in (True, False):
        config.tie_word_embeddings = tied
        model = wrap_model("policy", AutoModelForCausalLM.from_config(config), attention="packed")
        optimizer = zero.make_muon(model, LearnerConfig(optimizer="muon"), lr=1.0)
        names = {id(p): name for name, p in model.named_parameters()}
        muon, adam = ([g for g in optimizer.param_groups if g["use_muon"] is flag] for flag in (True, False))
        assert all("_proj." in names[id(p)] for g in muon for p in g["params"])
        assert not any("_proj." in names[id(p)] for g in adam for p in g["params"])
        assert sum(len(g["params"]) for g in optimizer.param_groups) == len(names)
        for group in muon:
            assert {p.shape[1] for p in group["params"]} == {round((group["lr"] / 0.2) ** 2)}


def test_adamw_of_8_bits_is_for_gpus():
    with pytest.raises(BadInput, match="adamw_8bit runs on GPUs only; take adamw"):
        make_optimizer(torch.nn.Linear(2, 2), LearnerConfig(optimizer="adamw_8bit"), lr=1.0)
