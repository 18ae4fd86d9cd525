"""Tokenizers: from a directory or hub id, or the toy dataset's own."""

from __future__ import annotations

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoTokenizer

from ..config import BadInput, ModelConfig
from ..toy import world as toy


def load_tokenizer(config: ModelConfig, default: str | None, ends: bool = True) -> Any:
    """The tokenizer that a model is used with; ``default`` is the directory or id of the model itself.

    Raises BadInput if it cannot be read, or if it has no end-of-sequence token and ``ends`` says that it needs one. A
    missing pad token is no error: sequences are ragged, and their ends are known by length.
    """
    name = config.tokenizer or default
    if name == "toy":
        return toy.tokenizer()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise BadInput(
            f"model.tokenizer: cannot read a tokenizer from {name} ({first}); give model.tokenizer"
        ) from None
    if ends and tokenizer.eos_token_id is None:
        raise BadInput(
            f"{name}: the tokenizer has no eos_token, so no response would ever end; "
            "set eos_token in its tokenizer_config.json"
        )
    return tokenizer


def fingerprint(tokenizer: Any) -> str:
    """A hash of all that the tokenizer is saved as."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(p for p in Path(folder).rglob("*") if p.is_file())
        return hashlib.sha256(b"".join(f.name.encode() + f.read_bytes() for f in files)).hexdigest()
