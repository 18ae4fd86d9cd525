"""`job: tokenizer`: a tokenizer trained on a corpus, written as transformers reads it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from ..config import TokenizerJob
from ..run.atomic import replace_directory
from .kind import JobKind, JobNeeds, Results, RunContext, log_packages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = {
    "pad_token": "<pad>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}


def needs(job: TokenizerJob) -> JobNeeds:
    """The corpus, and the size of the vocabulary that is made."""
    return JobNeeds(data={"data": job.data}, vocab_size=job.vocab_size, packages=log_packages(job.log))


def describe(job: TokenizerJob) -> list[str]:
    """The algorithm and the size of the vocabulary."""
    return [f"{job.job}: {job.algorithm} with {job.vocab_size} tokens"]


def run(job: TokenizerJob, context: RunContext) -> Results:
    """Writes RUN/model, a tokenizer's directory; returns its size and how many tokens a word of the corpus takes."""
    from ..data import examples

    texts = _texts(job)
    first = list(islice(texts, 1000))
    if not first:
        there = job.texts or next(examples.blocks(job.data.sources[0], "data"))[0]
        raise examples.DataError(f"data: no text in columns {', '.join(there)}; name some with texts")
    tokenizer = train(job.algorithm, chain(first, texts), job.vocab_size, job.lowercase)
    directory = context.run.path / "model"
    with replace_directory(directory) as part:
        tokenizer.save_pretrained(str(part))
    words = sum(len(t.split()) for t in first)
    tokens = sum(len(ids) for ids in tokenizer(first, add_special_tokens=False)["input_ids"])
    fertility = tokens / max(1, words)
    context.console.print(
        f"tokenizer: {len(tokenizer)} tokens, {fertility:.2f} a word of the first {len(first)} texts: {directory}"
    )
    return {"vocab_size": float(len(tokenizer)), "tokens_per_word": fertility}


def _texts(job: TokenizerJob) -> Iterator[str]:
    """The corpus, row by row; it is never in memory as a whole."""
    from ..data import examples

    for key, source in examples.named(job.data, "data"):
        for rows in examples.blocks(source, key):
            yield from (row[c] for row in rows for c in (job.texts or row) if isinstance(row.get(c), str))


def train(algorithm: str, texts: Iterable[str], vocab_size: int, lowercase: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE (any text comes back as it was) or a WordPiece tokenizer, special tokens first."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

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


TOKENIZER = JobKind(needs=needs, describe=describe, run=run)
