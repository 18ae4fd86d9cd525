"""Rows, tokenizers and jobs of the tests of supervised tasks."""

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, PreTrainedTokenizerFast

from rlhf_ray.batch import from_sequences
from rlhf_ray.data.examples import Rows
from rlhf_ray.models.load import AUTO_CLASSES, label_config, wrap_model
from rlhf_ray.toy import world as toy

BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
CPU = torch.device("cpu")
BOS, EOS = 1, 2  # of the toy tokenizer
PROMPT, GOOD, BAD = "review of the hotel :", " the view was great .", " the view was ugly ."
CONVERSATION = [{"role": "user", "content": "the view"}, {"role": "assistant", "content": "was great"}]
SIDES = {
    "prompt": CONVERSATION[:1],
    "completion": CONVERSATION[1:],
    "chosen": CONVERSATION[1:],
    "rejected": [{"role": "assistant", "content": "was awful"}],
}
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %} :{% endif %} {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %} :{% endif %}"
)
WORDS = """[PAD] [UNK] [CLS] [SEP] [MASK]
who wrote it ? ann lee wrote the book in may un ##like ##ly"""


def wordpiece():
    """A tokenizer as BERT's, [CLS] and [SEP] included."""
    inner = Tokenizer(models.WordPiece({w: i for i, w in enumerate(dict.fromkeys(WORDS.split()))}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", inner.token_to_id("[CLS]")), ("[SEP]", inner.token_to_id("[SEP]"))],
    )
    names = {n: f"[{n[:-6].upper()}]" for n in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def toy_with_bos():
    """The toy tokenizer, putting <bos> before every text, as Llama's does."""
    tokenizer = toy.tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", None, [("<bos>", BOS)])
    return tokenizer


def toy_with_template(template=TEMPLATE):
    """The toy tokenizer with a chat template."""
    tokenizer = toy.tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def rows(*examples, option="data"):
    return Rows(examples, "x.jsonl", range(1, len(examples) + 1), option)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def lists(batch, name="tokens"):
    return [s.tolist() for s in batch.sequences(name)]


def head(kind, labels=(), **more):
    """transformers' model, and the same one wrapped."""
    values = {**BERT, "vocab_size": 40, "pad_token_id": 0, **more, **label_config(kind, labels)}
    both = []
    for _ in range(2):
        torch.manual_seed(0)
        both.append(AUTO_CLASSES[kind].from_config(AutoConfig.for_model(**values)).eval())
    return both[0], wrap_model(kind, both[1], attention="auto")


def ragged(**columns):
    """Three random sequences of 5, 9 and 3 tokens."""
    draw = np.random.default_rng(0)
    sequences = [draw.integers(1, 40, n) for n in (5, 9, 3)]
    return from_sequences(sequences, prompt_length=[2, 3, 1], group=np.arange(3), example_id=np.arange(3), **columns)


def alone(model, batch, **more):
    """Outputs of each sequence by itself."""
    with torch.no_grad():
        return [
            model(input_ids=torch.tensor(s).long()[None], **{k: v[i] for k, v in more.items()})
            for i, s in enumerate(batch.sequences())
        ]


def job(cls, **more):
    """A job on an encoder, without data."""
    return cls(model={"init": BERT, "tokenizer": "toy"}, data={"path": "none"}, num_steps=1, max_length=16, **more)
