"""Names and shapes of weights in memory and in checkpoints: mixtures of experts, buffers, old names."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_ray.models.checkpoint_format import checkpoint_shapes, in_checkpoint_format, read_parameters, saved_buffers
from rlhf_ray.models.load import build_skeleton
from tests.experts import EXPERTS, SHAPE, UP_PROJECTION, save_random_model
from tests.helpers import TINY

LLAMA = {name: value for name, value in TINY.items() if name != "model_type"} | {"vocab_size": 50}
DEEPSEEK = {
    **SHAPE, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "moe_intermediate_size": 16,
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "first_k_dense_replace": 1,
}  # fmt: skip
ARCHITECTURES = {**EXPERTS, "deepseek_v3": DEEPSEEK, "llama": LLAMA}


@pytest.fixture(params=ARCHITECTURES)
def path(request, tmp_path):
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, **ARCHITECTURES[request.param])
    model = AutoModelForCausalLM.from_config(config)
    for buffer in saved_buffers(model).values():
        buffer.normal_()  # a trained one is not zero
    model.save_pretrained(tmp_path)
    return str(tmp_path)


def weights_of(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()} | saved_buffers(model)


def test_names_shapes_and_values_are_those_of_the_files(path):
    saved = load_file(f"{path}/model.safetensors")
    weights = weights_of(AutoModelForCausalLM.from_pretrained(path))
    converted = dict(in_checkpoint_format(AutoModelForCausalLM.from_pretrained(path), weights, weights.items()))
    assert converted.keys() == saved.keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in converted.items())
    with torch.device("meta"):
        skeleton = build_skeleton("policy", path, dtype=torch.float32)
    assert checkpoint_shapes(skeleton) == {name: tuple(tensor.shape) for name, tensor in saved.items()}


def test_files_are_read_by_the_names_in_memory(path):
    weights = weights_of(AutoModelForCausalLM.from_pretrained(path))
    parameters = dict(read_parameters(build_skeleton("policy", path, dtype=torch.float32), path))
    assert parameters.keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in parameters.items())


def test_a_tensor_comes_as_soon_as_its_parts_are_there(tmp_path):
    """A stack of experts is not held until the end of the model."""
    model = AutoModelForCausalLM.from_pretrained(save_random_model("mixtral", tmp_path))
    weights = weights_of(model)
    taken = []

    def tensors():
        for name, tensor in weights.items():
            taken.append(name)
            yield name, tensor

    for name, _ in in_checkpoint_format(model, weights, tensors()):
        if name == UP_PROJECTION["mixtral"]:
            assert taken[-1] == "model.layers.1.mlp.experts.gate_up_proj"
            return
    raise AssertionError("the experts never came")


def test_experts_in_several_files_are_one_stack(tmp_path):
    path = save_random_model("qwen3_moe", tmp_path)
    weights = weights_of(AutoModelForCausalLM.from_pretrained(path))
    saved = load_file(f"{path}/model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(saved)
    for i in range(3):  # each file has every third expert
        save_file({name: saved[name] for name in names[i::3]}, tmp_path / f"model-{i}.safetensors", {"format": "pt"})
    parameters = dict(read_parameters(build_skeleton("policy", path, dtype=torch.float32), path))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in parameters.items())


def test_a_checkpoint_of_the_base_model_is_read_with_its_prefix(tmp_path):
    """As from_pretrained does: the names in the files lack 'model.'."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **LLAMA))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    save_file({n.removeprefix("model."): t for n, t in saved.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    skeleton = build_skeleton("policy", str(tmp_path), dtype=torch.float32)
    assert dict(read_parameters(skeleton, str(tmp_path))).keys() == weights_of(model).keys()
