"""Masked language modelling (BERT): tokens are hidden and predicted from both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..algorithms import losses
from ..batch import Batch
from ..config import PretrainJob
from ..config.supervised import MaskConfig
from ..data.encode import NO_WORD, encode_text
from ..data.examples import Rows
from ..data.prepared import Example, Prepared, prepare_rows
from ..data.stream import Stream
from ..learner.objectives import Columns, Loss, PerToken
from .base import Task, TaskKind, prepare_data


@dataclass(frozen=True)
class TokenObjective(PerToken):
    """Cross-entropy of ``targets`` at the tokens in response_mask: masked tokens, or the tags of words.

    Devlin et al. 2018, arXiv 1810.04805. ``name`` is the name in metrics.
    """

    name: str

    def loss(self, model: Any, batch: Batch, device: torch.device) -> Loss:
        """Summed over these tokens."""
        c = Columns(batch, device)
        logits, targets = model(c.tokens, c.lengths, c.sampled), c.targets[c.sampled]
        loss = F.cross_entropy(logits, targets, reduction="none")
        ones = torch.ones_like(loss)
        return loss.sum(), {
            f"loss/{self.name}": losses.metric(loss, ones),
            f"{self.name}/accuracy": losses.metric(logits.argmax(-1) == targets, ones),
        }

    def predict(self, model: Any, batch: Batch, device: torch.device) -> list[np.ndarray]:
        """The likeliest class of each of these tokens: one int64 array for each sequence."""
        c = Columns(batch, device)
        classes = model(c.tokens, c.lengths, c.sampled).argmax(-1).cpu().numpy()
        return np.split(classes, np.cumsum(batch.response_lengths)[:-1])


def prepare(rows: Rows, tokenizer: Any, max_length: int) -> Prepared:
    """Column text in pieces of at most ``max_length`` tokens.

    response_mask marks the tokens that may be masked; ``words`` is the word of each token.
    """

    def encode_row(rows: Rows, index: int) -> list[Example]:
        text = encode_text(tokenizer, rows.text(index, "text"))
        examples = []
        for start in range(0, len(text.ids), max_length):
            words = text.words[start : start + max_length]
            mask = [int(word != NO_WORD) for word in words]
            if any(mask):
                ids = text.ids[start : start + max_length]
                examples.append(Example(tokens=ids, mask=mask, prompt_length=0, columns={"words": words}))
        return examples

    return prepare_rows(rows, encode_row, max_length, if_empty="no text has a word to be predicted")


def hide(batch: Batch, seed: Sequence[int], config: MaskConfig, mask_id: int, vocab_size: int) -> Batch:
    """BERT's masks (Devlin et al. 2018, arXiv 1810.04805), drawn from ``seed`` alone.

    Of the tokens that may be masked, a share is chosen to be predicted (targets, response_mask). Of these, 80 % become
    the mask token, 10 % a random one, 10 % stay. With ``whole_words`` words are chosen, with all their tokens. Each
    sequence has at least one chosen token.
    """
    draw = np.random.default_rng(list(seed))
    row = np.repeat(np.arange(len(batch)), batch.lengths)
    unit = np.arange(len(row))  # (T,): what is chosen together
    if config.whole_words:
        unit = np.unique(np.stack([row, batch.words], 1), axis=0, return_inverse=True)[1].reshape(-1)
    allowed = batch.response_mask == 1
    level = draw.random(unit.max() + 1)[unit]  # (T,): a token is chosen if its level is below the probability
    level[~allowed] = 2.0
    lowest = np.minimum.reduceat(level, batch.offsets[:-1])[row]
    chosen = (level < config.probability) | ((level == lowest) & allowed)
    kind, random_tokens = draw.random(len(row)), draw.integers(0, vocab_size, len(row))
    tokens = np.where(chosen & (kind < 0.8), mask_id, batch.tokens)
    tokens = np.where(chosen & (kind >= 0.9), random_tokens, tokens)
    return batch.replace(tokens=tokens, targets=batch.tokens, response_mask=chosen)


def build(job: PretrainJob, rows: Rows | Stream, heldout: Rows | None, tokenizer: Any) -> Task:
    """Pre-training of an encoder: each step and evaluation draws its own masks."""

    def view(batch: Batch, seed: Sequence[int]) -> Batch:
        return hide(batch, seed, job.mask, tokenizer.mask_token_id, len(tokenizer))

    data = prepare_data(job, prepare, rows, heldout, tokenizer)
    return Task(objective=TokenObjective("masked"), data=data, view=view)


MASKED = TaskKind(model="masked", build=build)
