"""Rules that ship with the package. Each has TRL's signature after its options are bound; see :func:`rule`."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from ..data import toy
from .reward import RewardError

Rule = Callable[..., list[float]]


def word_share(prompts: list[str], completions: list[str], *, words: Sequence[str], **columns: Any) -> list[float]:
    """Share of a completion's words that are in ``words`` (letters only, lower case)."""
    wanted = {w.lower() for w in words}
    return [sum(w in wanted for w in found) / max(1, len(found)) for found in map(_words, completions)]


def word_balance(
    prompts: list[str], completions: list[str], *, positive: Sequence[str], negative: Sequence[str], **columns: Any
) -> list[float]:
    """(positive - negative words) / (positive + negative + 1): between -1 and 1."""
    plus, minus = {w.lower() for w in positive}, {w.lower() for w in negative}
    found = []
    for words in map(_words, completions):
        p, n = sum(w in plus for w in words), sum(w in minus for w in words)
        found.append((p - n) / (p + n + 1))
    return found


def length(prompts: list[str], completions: list[str], *, target: int, **columns: Any) -> list[float]:
    """1 at ``target`` words, falling linearly to 0 at none and at twice as many."""
    return [max(0.0, 1.0 - abs(len(c.split()) - target) / target) for c in completions]


def regex_match(prompts: list[str], completions: list[str], *, pattern: str, **columns: Any) -> list[float]:
    """1 where ``pattern`` is found in the completion."""
    return [float(re.search(pattern, c) is not None) for c in completions]


def exact_answer(prompts: list[str], completions: list[str], *, answer: Sequence[Any], **columns: Any) -> list[float]:
    """1 where the completion's number (after '####', else the last one) equals that of the column ``answer``."""
    return [float(_number(c) is not None and _number(c) == _number(str(a))) for c, a in zip(completions, answer, strict=True)]


def toy_truth(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """The offline world's truth about a review."""
    return [toy.judge(p, c).truth for p, c in zip(prompts, completions, strict=True)]


def toy_sentiment(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """The sentiment of a review's valid clauses."""
    return [toy.judge(p, c).sentiment for p, c in zip(prompts, completions, strict=True)]


def toy_validity(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """The share of a review's clauses that are valid."""
    return [toy.judge(p, c).validity for p, c in zip(prompts, completions, strict=True)]


def toy_arithmetic(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """1 where a sum of the offline world is right."""
    return [float(toy.arithmetic_is_right(p, c)) for p, c in zip(prompts, completions, strict=True)]


RULES: dict[str, Rule] = {
    "word_share": word_share,
    "word_balance": word_balance,
    "length": length,
    "regex_match": regex_match,
    "exact_answer": exact_answer,
    "toy_truth": toy_truth,
    "toy_sentiment": toy_sentiment,
    "toy_validity": toy_validity,
    "toy_arithmetic": toy_arithmetic,
}


def rule(name: str, options: dict[str, Any]) -> Rule:
    """The rule with its options bound. Raises RewardError for an unknown rule, an unknown option, or a missing one."""
    if name not in RULES:
        raise RewardError(f"no rule '{name}'; there are {', '.join(RULES)}")
    takes = {k: p for k, p in inspect.signature(RULES[name]).parameters.items() if p.kind is p.KEYWORD_ONLY}
    unknown = set(options) - set(takes)
    missing = {k for k, p in takes.items() if p.default is p.empty and k != "answer"} - set(options)
    if unknown or missing:
        wrong = f"does not take {', '.join(sorted(unknown))}" if unknown else f"needs {', '.join(sorted(missing))}"
        raise RewardError(f"rule '{name}' {wrong}; its options are {', '.join(takes) or 'none'}")
    return functools.partial(RULES[name], **options)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def _number(text: str) -> float | None:
    tail = text.split("####")[-1].replace(",", "")
    found = re.findall(r"-?\d+(?:\.\d+)?", tail)
    return float(found[0] if "####" in text else found[-1]) if found else None
