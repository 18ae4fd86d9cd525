"""Log-probs of ragged sequences: packed, padded, in chunks; adapters, heads, dropout."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_ray import flops
from rlhf_ray.config import BadInput, LoraConfig, ModelConfig
from rlhf_ray.models.attention import flash_attention, key_layout, packed_attention
from rlhf_ray.models.load import (
    build_skeleton,
    compile_layers,
    create_model,
    disable_dropout,
    has_reward_head,
    load_model,
    read_context_length,
    read_generation_eos,
    read_vocab_size,
    resolve_model,
    wrap_model,
)
from rlhf_ray.models.log_probs import PolicyModel, ScalarModel
from rlhf_ray.models.packing import pack
from rlhf_ray.models.token_head import head_log_probs, scoring_head, token_log_probs
from rlhf_ray.models.value_heads import ValueModel
from rlhf_ray.toy import world as toy
from tests.helpers import TINY

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50, "pad_token_id": 0}
WIDE = {**SMALL, "intermediate_size": 64, "num_key_value_heads": 1}
KINDS = {
    "llama": WIDE,
    "qwen2": WIDE,
    "mistral": {**WIDE, "sliding_window": 4},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 50, "resid_pdrop": 0.5, "attn_pdrop": 0.5},
    "gpt_neox": {**SMALL, "intermediate_size": 64},
}
LENGTHS = [5, 1, 9, 5]


def made(kind, auto=AutoModelForCausalLM, **options):
    torch.manual_seed(0)
    return auto.from_config(AutoConfig.for_model(kind, **{**KINDS[kind], **options})).eval()


def ragged():
    """Flat tokens, lengths, and the positions of all tokens but each sequence's first."""
    draw = torch.Generator().manual_seed(1)
    lengths = torch.tensor(LENGTHS)
    starts = torch.cumsum(lengths, 0) - lengths
    tokens = torch.randint(0, 50, (int(lengths.sum()),), generator=draw)
    at = torch.tensor([i for i in range(len(tokens)) if i not in starts.tolist()])
    return tokens, lengths, at


def naive(model, temperature=1.0):
    """Log-probs and entropies by one forward pass for each sequence and a loop over its tokens."""
    tokens, lengths, _ = ragged()
    log_probs, entropies = [], []
    for ids in torch.split(tokens, lengths.tolist()):
        logits = model(input_ids=ids[None], use_cache=False).logits[0].float() / temperature
        for i in range(1, len(ids)):
            p = torch.softmax(logits[i - 1], -1)
            log_probs.append(torch.log(p[ids[i]]))
            entropies.append(-(p * torch.log(p)).sum())
    return torch.stack(log_probs), torch.stack(entropies)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["packed", "padded"])
def test_ragged_log_probs_are_those_of_single_sequences(kind, attention):
    model = made(kind)
    with torch.no_grad():
        expected, entropies = naive(model, 0.7)
        log_probs, _ = PolicyModel(model, attention)(*ragged(), 0.7)
    _, entropy = PolicyModel(model, attention)(*ragged(), 0.7)
    torch.testing.assert_close(log_probs, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, entropies, atol=1e-5, rtol=1e-5)


def groups():
    """Flat tokens of two groups with shared prompts and of one sequence alone; lengths, shared, response positions."""
    draw = torch.Generator().manual_seed(2)
    prompts = [torch.randint(0, 50, (n,), generator=draw) for n in (6, 3, 2)]
    rows, shared, answers = [], [], []
    for prompt, sizes in zip(prompts, ((4, 1, 4), (7, 5), (3,)), strict=True):
        for i, size in enumerate(sizes):
            rows.append(torch.cat([prompt, torch.randint(0, 50, (size,), generator=draw)]))
            shared.append(len(prompt) if i else 0)
            answers.append(torch.arange(len(rows[-1])) >= len(prompt))
    return (
        torch.cat(rows),
        torch.tensor([len(r) for r in rows]),
        torch.tensor(shared),
        torch.cat(answers).nonzero()[:, 0],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_shared_prompt_is_computed_once_and_changes_nothing(kind):
    tokens, lengths, shared, at = groups()
    results = []
    for leading in (None, shared):
        model = PolicyModel(made(kind), "packed")
        result, _ = model(tokens, lengths, at, shared=leading)
        (result * torch.arange(len(result))).sum().backward()
        results.append((result.detach(), [p.grad for p in model.parameters()]))
    (unshared, whole_grads), (once, grads) = results
    torch.testing.assert_close(once, unshared, atol=1e-5, rtol=1e-5)
    for result, expected in zip(grads, whole_grads, strict=True):
        torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)
    packing = pack(lengths, shared)
    assert sum(packing.lengths) == len(packing.source) == len(tokens) - int(shared.sum())
    assert packing.lengths == (6, 4, 1, 4, 3, 7, 5, 5)
    assert packing.prefixes == (-1, 0, 0, 0, -1, 4, 4, -1)


def test_the_worked_examples_of_a_shared_prompt():
    packing = pack(torch.tensor([3, 4, 2]), torch.tensor([0, 2, 0]))
    assert (packing.lengths, packing.prefixes) == ((2, 1, 2, 2), (-1, 0, 0, -1))
    assert packing.source.tolist() == [0, 1, 2, 5, 6, 7, 8]
    assert packing.index.tolist() == [0, 1, 2, 0, 1, 3, 4, 5, 6]
    assert packing.positions.tolist() == [0, 1, 2, 2, 3, 0, 1]
    layout = key_layout((3, 2, 2), (-1, 0, 0), torch.device("cpu"))
    assert layout.positions.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5, 6]
    assert layout.query_ends.tolist() == [0, 3, 5, 7]
    assert (layout.key_ends.tolist(), layout.max_keys) == ([0, 3, 8, 13], 5)


def documented_varlen(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa=False):
    """torch's CUDA kernel as its documentation reads: each sequence alone, queries aligned with the end of the keys."""
    out = []
    for i in range(len(cu_q) - 1):
        a, b = ((x[cu[i] : cu[i + 1]]).transpose(0, 1) for x, cu in ((q, cu_q), (k, cu_k)))
        assert a.shape[1] <= max_q
        assert b.shape[1] <= max_k
        back = torch.arange(b.shape[1] - a.shape[1], b.shape[1])[:, None] - torch.arange(b.shape[1])
        seen = (back >= 0) & ((back <= window_size[0]) if window_size[0] >= 0 else True)
        values = v[cu_k[i] : cu_k[i + 1]].transpose(0, 1)
        attended = torch.nn.functional.scaled_dot_product_attention(
            a, b, values, attn_mask=seen, scale=scale, enable_gqa=enable_gqa
        )
        out.append(attended.transpose(0, 1))
    return torch.cat(out)


def varlen_of_torch_2_11(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size):
    """The same before it took fewer heads of keys than of queries."""
    return documented_varlen(q, k, v, cu_q, cu_k, max_q, max_k, scale=scale, window_size=window_size)


@pytest.mark.parametrize("kernel", [documented_varlen, varlen_of_torch_2_11])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("prefixes", [(-1, -1, -1, -1), (-1, 0, 0, -1)])
def test_one_flash_kernel_gets_what_the_sequences_apart_get(monkeypatch, kernel, window, prefixes):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    draw, lengths = torch.Generator().manual_seed(3), (6, 3, 9, 5)
    q, k, v = (torch.randn(1, heads, sum(lengths), 8, generator=draw) for heads in (4, 2, 2))
    apart, _ = packed_attention(torch.nn.Module(), q, k, v, None, 0.3, lengths, prefixes, sliding_window=window)
    torch.testing.assert_close(flash_attention(q, k, v, lengths, prefixes, 0.3, window), apart)


def test_gradients_of_packed_and_padded_are_the_same():
    grads = []
    for attention in ("packed", "padded"):
        model = PolicyModel(made("llama"), attention)
        model(*ragged())[0].sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], atol=1e-5, rtol=1e-4)


class OtherLinear(torch.nn.Linear):
    """A head of a class that is not known."""


@pytest.mark.parametrize("entropy_coef", [0.0, 0.1])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [torch.nn.Linear, OtherLinear])  # the head's own backward, and autograd's
@pytest.mark.parametrize("elements", [1 << 24, 1])  # one chunk; chunks of 128
def test_the_head_in_chunks_gives_the_values_and_gradients_of_whole_logits(
    monkeypatch, kind, bias, frozen, elements, entropy_coef
):
    torch.manual_seed(0)
    layer, targets = kind(8, 50, bias=bias), torch.randint(0, 50, (300,))
    layer.requires_grad_(not frozen)
    head = scoring_head(copy.deepcopy(layer))
    monkeypatch.setattr(flops, "HEAD_CHUNK_LOGITS", elements)
    states, factors, results, entropy_grad = torch.randn(300, 8), torch.randn(300), [], entropy_coef > 0
    for module, scores in (
        (layer, lambda x: token_log_probs(layer(x), targets, 0.7, entropy_grad)),
        (head, lambda x: head_log_probs(head, x, targets, 0.7, entropy_grad)),
    ):
        x = states.clone().requires_grad_()
        log_probs, entropy = scores(x)
        assert entropy.requires_grad is entropy_grad
        ((log_probs * factors).sum() + entropy_coef * (entropy * factors).sum()).backward()
        grads = [] if frozen else [p.grad for p in module.parameters()]
        results.append((log_probs.detach(), entropy.detach(), x.grad, *grads))
    for at_once, chunks in zip(*results, strict=True):
        torch.testing.assert_close(chunks, at_once, atol=2e-5, rtol=1e-5)
    with torch.no_grad():
        scored, entropy = head_log_probs(head, states, targets, 0.7, entropy_grad)
    torch.testing.assert_close(scored, results[0][0], atol=1e-5, rtol=1e-5)
    assert entropy.isnan().all()
    torch.testing.assert_close(head(states), layer(states))  # still an output layer


def test_a_head_is_called_once_however_many_chunks_it_makes(monkeypatch):
    """At ZeRO-3 each call gathers the head from all ranks, which have different numbers of chunks."""
    monkeypatch.setattr(flops, "HEAD_CHUNK_LOGITS", 1)
    tokens, lengths = torch.arange(400) % 50, torch.tensor([400])
    adapted = wrap_model("policy", made("llama"), attention="packed", lora=LoraConfig(rank=2, targets=["lm_head"]))
    for model in (PolicyModel(made("llama"), "packed"), adapted, ValueModel(made("llama"), "packed")):
        heads = [model.core.get_output_embeddings()]
        if isinstance(model, ValueModel):
            heads += [head.out for head in (*model.heads.q, *model.heads.target)]
        calls = [0] * len(heads)
        for i, head in enumerate(heads):
            head.register_forward_hook(lambda *_, i=i, calls=calls: calls.__setitem__(i, calls[i] + 1))
        extra = (True,) if isinstance(model, ValueModel) else ()
        for count in (0, 100, 399):  # scored tokens: none, one chunk, four
            calls[:] = [0] * len(heads)
            model(tokens, lengths, torch.arange(1, count + 1), *extra)
            assert calls == [1] * len(heads)


def test_an_adapter_on_the_head_learns_as_with_whole_logits(monkeypatch):
    monkeypatch.setattr(flops, "HEAD_CHUNK_LOGITS", 1)
    grads = []
    for attention in ("packed", "padded"):  # padded: whole logits
        torch.manual_seed(0)
        lora = LoraConfig(rank=2, targets=["lm_head", "q_proj"])
        model = wrap_model("policy", made("llama"), attention=attention, lora=lora)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(std=0.1)
        tokens, lengths = torch.arange(300) % 50, torch.tensor([300])
        model(tokens, lengths, torch.arange(1, 300))[0].sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert any("lm_head.lora_B" in name for name in grads[0])
    for name, grad in grads[1].items():
        torch.testing.assert_close(grads[0][name], grad, atol=1e-3, rtol=1e-3)


def test_the_gradient_of_a_bfloat16_head_is_summed_over_chunks_in_float32(monkeypatch):
    """128 chunks of one direction: sums in bfloat16 stop growing where a summand is below half of the last digit."""
    monkeypatch.setattr(flops, "HEAD_CHUNK_LOGITS", 1)
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 50, bias=False)
    states, targets = (torch.rand(128 * 600, 8) + 0.5).bfloat16(), torch.zeros(128 * 600, dtype=torch.long)
    grads = []
    for dtype in (torch.float32, torch.bfloat16):
        head = scoring_head(copy.deepcopy(layer).bfloat16().to(dtype))
        log_probs, _ = head_log_probs(head, states.to(dtype), targets, 1.0, False)
        log_probs.sum().backward()
        grads.append(head.weight.grad.float())
    error = float((grads[1] - grads[0]).norm() / grads[0].norm())
    assert error < 0.005


def test_entropy_has_a_gradient_only_when_asked():
    logits = torch.randn(3, 5, requires_grad=True)
    assert not token_log_probs(logits, torch.tensor([0, 1, 2]), 1.0, False)[1].requires_grad
    assert token_log_probs(logits, torch.tensor([0, 1, 2]), 1.0, True)[1].requires_grad


def test_the_check_keeps_packed_where_it_is_right():
    for model in (PolicyModel(made("llama"), "auto"), scalar("llama")):
        assert model.check(50) < 1e-5
        assert model.packed


def scalar(kind, **options):
    """A scalar model whose head is zero, as a critic's at the start."""
    torch.manual_seed(0)
    values = {**KINDS.get(kind, WIDE), **options, "num_labels": 1}
    plain = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **values)).eval()
    torch.nn.init.zeros_(plain.score.weight)
    return ScalarModel(plain, "auto")


JAMBA = {
    "num_hidden_layers": 2,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "num_experts": 1,
    "mamba_d_state": 4,
    "initializer_range": 0.5,
}


UNPACKABLE = [
    ("gemma2", {"head_dim": 16}, "Gemma2Attention uses softcap"),
    ("jamba", JAMBA, "has layers of kind linear_attention"),
    ("stablelm", WIDE, "StableLmAttention does not pass keyword arguments on"),
]


@pytest.mark.parametrize(("kind", "options", "reason"), UNPACKABLE)
def test_a_model_that_cannot_be_packed_is_padded_and_says_why(kind, options, reason):
    model = scalar(kind, **options)
    assert model.check(50) == float("inf")
    assert not model.packed
    assert reason in model.padded_reason
    model(*ragged()[:2], torch.tensor([4]))  # the padded path runs


@pytest.mark.parametrize("kind", ["falcon", "bloom"])  # the first takes no packed mask, the second no positions
def test_the_check_of_a_scalar_model_sees_what_its_zero_head_hides(kind):
    names = {"n_layer": 2, "n_head": 2} if kind == "bloom" else {}
    model = scalar(kind, initializer_range=0.5, **names)
    assert 1e-3 < model.check(50) < float("inf")
    assert not model.packed
    assert "packed and one-by-one passes differ by" in model.padded_reason


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, TypeError])
def test_an_error_in_the_check_is_not_taken_for_an_unsuited_model(error):
    def fail(module, args):
        raise error("planted")

    model = PolicyModel(made("llama"), "auto")
    model.core.base_model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(error, match="planted"):
        model.check(50)


def test_the_check_takes_the_padded_path_where_packed_is_wrong():
    config = AutoConfig.for_model("gemma2", **{**WIDE, "head_dim": 16, "final_logit_softcapping": 5.0})
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        expected, _ = naive(plain)
        model = PolicyModel(plain, "auto")
        model.check(50)
        log_probs, _ = model(*ragged())
    assert not model.packed
    torch.testing.assert_close(log_probs, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", ["packed", "padded"])
def test_a_scalar_is_read_where_it_is_asked_for(attention):
    plain = made("llama", AutoModelForSequenceClassification, num_labels=1)
    tokens, lengths, _ = ragged()
    last = torch.cumsum(lengths, 0) - 1
    with torch.no_grad():
        expected = [
            plain.score(plain.model(input_ids=ids[None]).last_hidden_state[0, -1]).item()
            for ids in torch.split(tokens, LENGTHS)
        ]
        scalars = ScalarModel(plain, attention)(tokens, lengths, last)
    torch.testing.assert_close(scalars, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_a_random_model_is_written_and_read_back(tmp_path):
    tokenizer = toy.tokenizer()
    path = create_model(ModelConfig(init=TINY, tokenizer="toy"), str(tmp_path), tokenizer, seed=3)
    model = load_model("policy", path, attention="padded")
    assert read_vocab_size(path) == len(tokenizer)
    assert read_context_length(path) == TINY["max_position_embeddings"]
    assert read_generation_eos(path) == [tokenizer.eos_token_id]
    assert not has_reward_head(path)
    names = load_file(f"{path}/model.safetensors").keys()
    assert names <= set(model.model.state_dict())


def test_without_a_pad_token_every_embedding_can_learn(tmp_path):
    tokenizer = toy.tokenizer()
    tokenizer.pad_token = None
    path = create_model(ModelConfig(init=TINY, tokenizer="toy"), str(tmp_path), tokenizer, 0)
    embedding = AutoModelForCausalLM.from_pretrained(path).get_input_embeddings()
    assert embedding.padding_idx is None
    assert embedding.weight[tokenizer.eos_token_id].abs().sum() > 0


def test_the_same_seed_makes_the_same_model(tmp_path):
    paths = [create_model(ModelConfig(init=TINY, tokenizer="toy"), str(tmp_path / n), toy.tokenizer(), 3) for n in "ab"]
    first, second = (load_file(f"{path}/model.safetensors") for path in paths)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize(
    ("path", "says"), [("/none/at/all", "no such model directory"), ("just-a-word", "no such model directory")]
)
def test_a_model_that_cannot_be_had(path, says):
    with pytest.raises(BadInput, match=says):
        resolve_model(path)


def test_a_directory_without_a_config_is_no_model(tmp_path):
    with pytest.raises(BadInput, match=r"no config\.json"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize("values", [{"model_type": "sphinx"}, {**TINY, "num_attention_heads": 3}])
def test_an_impossible_architecture_is_bad_input(tmp_path, values):
    with pytest.raises(BadInput, match=r"model\.init"):
        create_model(ModelConfig(init=values, tokenizer="toy"), str(tmp_path), toy.tokenizer(), 0)


def test_dropout_is_off_even_in_training():
    model = PolicyModel(made("gpt2"), "padded").train()
    disable_dropout(model)
    with torch.no_grad():
        assert torch.equal(model(*ragged())[0], model(*ragged())[0])


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"]])
def test_the_head_of_a_scalar_model_trains_beside_its_adapters(targets):
    plain = made("llama", AutoModelForSequenceClassification, num_labels=1)
    model = wrap_model("scalar", plain, attention="packed", lora=LoraConfig(rank=2, targets=targets))
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert [n for n in trained if "lora_" not in n] == ["model.base_model.model.score.weight"]
    assert any("q_proj.lora_A" in n for n in trained)


def test_an_adapter_is_merged_or_refused_where_it_cannot_be(tmp_path):
    made("llama").save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    wrapped = wrap_model("policy", base, attention="packed", lora=LoraConfig(rank=2))
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
    wrapped.model.save_pretrained(tmp_path / "adapter")
    log_probs = load_model("policy", str(tmp_path / "adapter"))(*ragged())[0]
    torch.testing.assert_close(log_probs, wrapped(*ragged())[0], atol=1e-4, rtol=1e-4)
    for refused in (lambda p: build_skeleton("policy", p, dtype=torch.float32), lambda p: load_model("scalar", p)):
        with pytest.raises(BadInput, match="adapter"):
            refused(str(tmp_path / "adapter"))


def test_only_adapters_train_and_without_them_it_is_the_base():
    base = PolicyModel(made("llama"), "packed")(*ragged())[0].detach()
    model = wrap_model("policy", made("llama"), attention="packed", lora=LoraConfig(rank=2))
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in n for n in trained)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
    assert not torch.allclose(model(*ragged())[0], base, atol=1e-3)
    with model.model.disable_adapter():
        torch.testing.assert_close(model(*ragged())[0], base)


def test_compiled_parts_change_nothing_and_are_compiled_once():
    """model.compile: two graphs (normalisation, MLP) for all layers and any number of tokens."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2
    )
    model = PolicyModel(AutoModelForCausalLM.from_config(config), "packed")

    def found(length):
        tokens = torch.arange(2 * length) % 64
        log_probs, _ = model(tokens, torch.tensor([length, length]), torch.arange(1, length), 1.0, False, None)
        log_probs.sum().backward()
        gradient = model.core.model.layers[0].mlp.gate_proj.weight.grad.clone()
        model.zero_grad()
        return log_probs.detach(), gradient

    plain = {n: found(n) for n in (5, 9, 14)}
    compile_layers(model)
    torch._dynamo.utils.counters.clear()
    for n, (log_probs, gradient) in plain.items():
        again = found(n)
        assert (again[0] - log_probs).abs().max() < 1e-5
        assert (again[1] - gradient).abs().max() < 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
