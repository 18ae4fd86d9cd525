"""Training a tokenizer on a corpus, with the tokenizers library; written as transformers reads it."""

from __future__ import annotations

import shutil
from typing import Any

from rich.console import Console
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ..config import TokenizerJob
from ..data import examples
from .rundir import RunDir

SPECIAL = {
    "pad_token": "<pad>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}


def run(job: TokenizerJob, held: RunDir, console: Console) -> dict[str, Any]:
    """Writes RUN/model, a tokenizer's directory; returns its size and how many tokens a word of the corpus takes."""
    rows = examples.load(job.data, "data")
    texts = [str(row[c]) for row in rows for c in (job.texts or row) if isinstance(row.get(c), str)]
    if not texts:
        raise examples.DataError(
            f"{rows.source}: no text in columns {', '.join(job.texts or rows[0])}; name some with texts"
        )
    made = train(job.algorithm, texts, job.vocab_size, job.lowercase)
    directory = held.path / "model"
    part = directory.with_suffix(".tmp")
    shutil.rmtree(part, ignore_errors=True)
    made.save_pretrained(str(part))
    shutil.rmtree(directory, ignore_errors=True)
    part.rename(directory)
    words = sum(len(t.split()) for t in texts[:1000])
    tokens = sum(len(ids) for ids in made(texts[:1000], add_special_tokens=False)["input_ids"])
    fertility = tokens / max(1, words)
    console.print(f"tokenizer: {len(made)} tokens from {len(texts)} texts, {fertility:.2f} a word: {directory}")
    return {"vocab_size": float(len(made)), "tokens_per_word": fertility}


def train(algorithm: str, texts: list[str], vocab_size: int, lowercase: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE (any text comes back as it was) or a WordPiece tokenizer, special tokens first."""
    names = list(SPECIAL.values())
    if algorithm == "bpe":
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        inner.post_processor = processors.ByteLevel(trim_offsets=True)
        trainer: Any = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=names, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
    else:
        inner = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk_token"]))
        inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        inner.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=names, show_progress=False)
    if lowercase:
        inner.normalizer = normalizers.Lowercase()
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=False, **SPECIAL)
