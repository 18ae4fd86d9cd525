"""What both sides are given: a random model with its tokenizer, prompts, response lengths, and a fixed batch to compare on."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

ROOT = Path("build/benchmarks")
SHAPES = {
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "6.6M": {"hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6},
    "0.5B": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 28, "num_attention_heads": 16},
}
PROMPT = 16
EOS = 1


@dataclass(frozen=True)
class Size:
    """What a step is: the model's shape, samples, and tokens of the longest response; ``micro`` are the samples of a micro-batch of
    TRL's, ``tokens`` those of one of ours."""

    shape: str
    samples: int
    longest: int
    micro: int
    tokens: int = 4096


FULL = Size("6.6M", 64, 128, 16)
QUICK = Size("tiny", 16, 16, 8)
LARGE = Size("0.5B", 128, 256, 32, 16384)


def tokenizer(vocab):
    """One token a word: w0, w1, ...; ids 0 to 2 are <pad>, <eos> and <unk>."""
    words = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(vocab - 3))]
    plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def model(shape, vocab, kind="policy"):
    """Directory of a random Llama with tied embeddings; ``kind`` 'policy', or 'reward' for one with a scalar head."""
    directory = ROOT / "models" / f"{shape}-{vocab}-{kind}"
    if (directory / "tokenizer.json").is_file():
        return str(directory.absolute())
    torch.manual_seed(0 if kind == "policy" else 1)
    values = SHAPES[shape]
    config = AutoConfig.for_model(
        "llama", vocab_size=vocab, num_key_value_heads=values["num_attention_heads"], tie_word_embeddings=True,
        max_position_embeddings=1024, bos_token_id=None, eos_token_id=EOS, pad_token_id=0, num_labels=1, **values,
    )  # fmt: skip
    cls = AutoModelForCausalLM if kind == "policy" else AutoModelForSequenceClassification
    cls.from_config(config).save_pretrained(directory)
    tokenizer(vocab).save_pretrained(directory)
    return str(directory.absolute())


def words(draw, vocab, count):
    """Text of ``count`` random tokens."""
    return " ".join(f"w{i}" for i in draw.integers(0, vocab - 3, count))


def prompts(vocab, count=512):
    """A JSONL file of prompts of 16 tokens."""
    draw, path = np.random.default_rng(1), ROOT / f"prompts-{vocab}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"prompt": words(draw, vocab, PROMPT)}) + "\n" for _ in range(count)))
    return str(path.absolute())


def examples(vocab, kind, count, longest):
    """A JSONL file of ``count`` examples: 'sft' prompts with completions, or 'reward' pairs, of skewed lengths up to longest."""
    draw, rows = np.random.default_rng(3), []
    columns = ["completion"] if kind == "sft" else ["chosen", "rejected"]
    for sizes in lengths("skewed", count * len(columns), longest - PROMPT - 1).reshape(count, -1):
        row = {"prompt": words(draw, vocab, PROMPT) + " "}
        rows.append(row | {c: words(draw, vocab, n) for c, n in zip(columns, sizes, strict=True)})
    path = ROOT / f"{kind}-{vocab}-{count}-{longest}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path.absolute())


def lengths(kind, count, longest):
    """Response lengths (count,): all the longest, or exponential with a third of it as scale, cut there, shuffled."""
    if kind == "equal":
        return np.full(count, longest)
    at = (np.arange(count) + 0.5) / count
    drawn = np.ceil(-np.log(1.0 - at) * longest / 3).astype(int).clip(1, longest)
    return np.random.default_rng(0).permutation(drawn)


def fixed(vocab, count, longest, kind="skewed"):
    """The same few sequences for both sides: a dict of lists (tokens, lengths of responses, old log-probs, advantages)."""
    draw, sizes = np.random.default_rng(2), lengths(kind, count, longest)
    return {
        "prompt": [draw.integers(3, vocab, PROMPT).tolist() for _ in sizes],
        "response": [draw.integers(3, vocab, n).tolist() for n in sizes],
        "old_log_probs": [(draw.normal(size=n) * 0.2 - np.log(vocab)).tolist() for n in sizes],
        "advantages": draw.normal(size=count).tolist(),
    }
