"""FLOPs of an update against torch's own count of a forward and a backward pass."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from rlhf_ray.batch import from_sequences
from rlhf_ray.learner.mfu import num_elements, training_flops
from rlhf_ray.models.load import wrap_model
from tests.helpers import T5, TINY

LENGTH, PROMPT, VOCAB = 48, 8, 64


def rows(lengths=(LENGTH,)):
    """Sequences whose first tokens are the prompt."""
    return from_sequences(
        [np.arange(n) % VOCAB for n in lengths],
        response_mask=[np.arange(n) >= PROMPT for n in lengths],
        prompt_length=[PROMPT] * len(lengths),
        group=np.arange(len(lengths)),
    )


def counted(module, *inputs):
    """FLOPs of forward and backward as torch counts its matrix products; attention's are those of the whole square."""
    with FlopCounterMode(display=False) as counter:
        module(**dict(inputs)).logits.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_costs_what_torch_counts(tied):
    config = AutoConfig.for_model(
        **{**TINY, "vocab_size": VOCAB, "tie_word_embeddings": tied}, attn_implementation="eager"
    )
    model = AutoModelForCausalLM.from_config(config)
    wrapped = wrap_model("policy", model, attention="padded")
    batch = rows()
    formula = training_flops(wrapped, "policy", False, batch)
    read, norms = LENGTH - PROMPT, 5 * 32  # products of norms are no matrix products
    head = 6.0 * (LENGTH - read) * VOCAB * 32  # torch computes the head at all positions
    attention = 6.0 * 2 * 32 * LENGTH**2  # and the other half of attention's square
    expected = counted(model, ("input_ids", torch.arange(LENGTH)[None] % VOCAB))
    assert formula - 6.0 * norms * LENGTH + head + attention == pytest.approx(expected, rel=1e-6)


def test_a_frozen_trunk_costs_a_forward_pass_and_its_heads_three(tmp_path):
    config = AutoConfig.for_model(**{**TINY, "vocab_size": VOCAB})
    wrapped = wrap_model("values", AutoModelForCausalLM.from_config(config), attention="padded")
    wrapped.model.requires_grad_(False)
    body = num_elements(wrapped.core) - VOCAB * 32
    heads = sum(p.numel() for p in wrapped.heads.parameters() if p.requires_grad)
    read = LENGTH - PROMPT
    trunk = 2.0 * body * LENGTH + 4.0 * 2 * 32 * LENGTH**2 / 2
    assert training_flops(wrapped, "values", True, rows()) == trunk + 6.0 * heads * read
    assert training_flops(wrapped, "values", False, rows()) == 3.0 * trunk + 6.0 * (heads + VOCAB * 32) * read


def test_an_encoder_decoder_reads_its_source_once():
    config = AutoConfig.for_model(**{**T5, "vocab_size": VOCAB, "decoder_start_token_id": 0})
    model = AutoModelForSeq2SeqLM.from_config(config)
    wrapped = wrap_model("seq2seq", model, attention="padded")

    def side(module):
        return sum(p.numel() for p in module.parameters() if VOCAB not in p.shape)

    source, target = PROMPT, LENGTH - PROMPT
    products = side(model.get_encoder()) * source + (side(model.get_decoder()) + VOCAB * 32) * target
    pairs = source**2 + target**2 / 2 + source * target
    assert training_flops(wrapped, "seq2seq", False, rows()) == 6.0 * products + 12.0 * 2 * 32 * pairs
