"""Rules that ship with the package. Each has TRL's signature after its options are bound; see :func:`rule`."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ..quality import text as texts
from ..toy.rules import TOY_RULES
from .reward import RewardError

Rule = Callable[..., list[float]]


def word_share(prompts: list[str], completions: list[str], *, words: Sequence[str], **columns: Any) -> list[float]:
    """Share of a completion's words that are in ``words`` (letters only, lower case)."""
    wanted = _word_set(words)
    return [sum(w in wanted for w in found) / max(1, len(found)) for found in map(_words, completions)]


def word_balance(
    prompts: list[str], completions: list[str], *, positive: Sequence[str], negative: Sequence[str], **columns: Any
) -> list[float]:
    """(positive - negative words) / (positive + negative + 1): between -1 and 1."""
    plus, minus = _word_set(positive), _word_set(negative)
    found = []
    for words in map(_words, completions):
        p, n = sum(w in plus for w in words), sum(w in minus for w in words)
        found.append((p - n) / (p + n + 1))
    return found


def contains(prompts: list[str], completions: list[str], *, text: str, **columns: Any) -> list[float]:
    """1 where ``text`` occurs in the completion, upper and lower case taken as the same."""
    wanted = text.lower()
    return [float(wanted in c.lower()) for c in completions]


def length(
    prompts: list[str], completions: list[str], *, target: int, unit: str = "words", **columns: Any
) -> list[float]:
    """1 at ``target`` words (or ``unit: chars``), falling linearly to 0 at none and at twice as many."""
    if unit not in ("words", "chars") or not target > 0:
        raise ValueError("target must be above 0, and unit 'words' or 'chars'")
    sizes = [len(c.split() if unit == "words" else c) for c in completions]
    return [max(0.0, 1.0 - abs(size - target) / target) for size in sizes]


def regex_match(prompts: list[str], completions: list[str], *, pattern: str, **columns: Any) -> list[float]:
    """1 where ``pattern`` is found in the completion."""
    wanted = re.compile(pattern)
    return [float(wanted.search(c) is not None) for c in completions]


def layout(prompts: list[str], completions: list[str], *, pattern: str, **columns: Any) -> list[float]:
    """1 where the whole completion, blanks at its ends aside, has the form ``pattern``; a dot matches line ends too."""
    wanted = re.compile(pattern, re.DOTALL)
    return [float(wanted.fullmatch(c.strip()) is not None) for c in completions]


def exact_answer(
    prompts: list[str], completions: list[str], *, answer: Sequence[Any], strict: bool = False, **columns: Any
) -> list[float]:
    """1 where the completion's number equals that of the column ``answer``: the first after '####', or, where there is no such
    mark, the last one; ``strict`` takes none without the mark."""
    read = [None if strict and "####" not in c else _number(c) for c in completions]
    return [float(f is not None and f == _number(str(a))) for f, a in zip(read, answer, strict=True)]


def exact_match(prompts: list[str], completions: list[str], *, answer: Sequence[Any], **columns: Any) -> list[float]:
    """1 where the completion is one of the answers, after SQuAD's normalisation."""
    return [texts.exact_match(c, texts.references(a)) for c, a in zip(completions, answer, strict=True)]


def right_class(
    prompts: list[str], completions: list[str], *, answer: Sequence[Any], weights: dict[str, float], **columns: Any
) -> list[float]:
    """The weight of the right class where the completion names it, else 0: with inverse frequencies no class is worth guessing."""
    table = {str(name): float(weight) for name, weight in weights.items()}
    rows = zip(completions, answer, strict=True)
    return [table.get(str(a), 1.0) * float(c.strip() == str(a).strip()) for c, a in rows]


def token_f1(prompts: list[str], completions: list[str], *, answer: Sequence[Any], **columns: Any) -> list[float]:
    """Overlap of the completion's words with the best of the answers: SQuAD's F1."""
    return [texts.token_f1(c, texts.references(a)) for c, a in zip(completions, answer, strict=True)]


def token_recall(prompts: list[str], completions: list[str], *, answer: Sequence[Any], **columns: Any) -> list[float]:
    """Completeness: the share of the answer's words that the completion has, the best of the answers."""
    return [texts.token_recall(c, texts.references(a)) for c, a in zip(completions, answer, strict=True)]


def coherence(prompts: list[Any], completions: list[str], *, n: int = 2, ends: str = "", **columns: Any) -> list[float]:
    """The share of a completion's words that the prompt has too, times the share of its n-grams that are new in it; 0 for an
    empty one and, with ``ends``, for one whose last character is none of these."""
    found = []
    for prompt, completion in zip(prompts, completions, strict=True):
        words, known = _tokens(completion), set(_tokens(_said(prompt)))
        ended = not ends or completion.rstrip().endswith(tuple(ends))
        grounded = sum(w in known for w in words) / len(words) if words and ended else 0.0
        found.append(grounded * (1.0 - texts.repetition(completion, n)))
    return found


def chrf(prompts: list[str], completions: list[str], *, answer: Sequence[Any], **columns: Any) -> list[float]:
    """chrF2 of the completion against the answers, 0 to 1."""
    return texts.sentence_chrf(completions, [texts.references(a) for a in answer])


def rouge_l(prompts: list[str], completions: list[str], *, answer: Sequence[Any], **columns: Any) -> list[float]:
    """F measure of the longest common subsequence with the best of the answers."""
    return texts.rouge_l(completions, [texts.references(a) for a in answer])


def no_repetition(prompts: list[str], completions: list[str], *, n: int = 3, **columns: Any) -> list[float]:
    """Share of a completion's n-grams that are new in it; 1 for one without any."""
    return [1.0 - texts.repetition(c, n) for c in completions]


def diversity(prompts: list[Any], completions: list[str], *, n: int = 2, **columns: Any) -> list[float]:
    """Each different n-gram is worth 1, shared equally by the samples of the prompt that have it; the sum over a completion's
    n-grams divided by their number. So repeating oneself costs as much as repeating another sample, and weighted by their
    numbers of n-grams the samples' mean is distinct-n of them all (Li et al. 2016, arXiv 1510.03055)."""
    every = [texts.grams(c, n) for c in completions]
    keys = [_said(p) for p in prompts]
    holders = Counter((key, gram) for key, grams in zip(keys, every, strict=True) for gram in set(grams))
    rows = zip(keys, every, strict=True)
    return [sum(1 / holders[key, gram] for gram in set(grams)) / max(1, len(grams)) for key, grams in rows]


def prompt_words(
    prompts: list[Any], completions: list[str], *, ignore: Sequence[str] = (), **columns: Any
) -> list[float]:
    """Consistency: the share of the prompt's different words, those in ``ignore`` aside, that the completion has; 1 where none is left."""
    aside, found = _word_set(ignore), []
    for prompt, completion in zip(prompts, completions, strict=True):
        wanted = set(_tokens(_said(prompt))) - aside
        found.append(len(wanted & set(_tokens(completion))) / len(wanted) if wanted else 1.0)
    return found


RULES: dict[str, Rule] = {
    "word_share": word_share,
    "word_balance": word_balance,
    "contains": contains,
    "length": length,
    "regex_match": regex_match,
    "format": layout,
    "exact_answer": exact_answer,
    "exact_match": exact_match,
    "right_class": right_class,
    "token_f1": token_f1,
    "token_recall": token_recall,
    "coherence": coherence,
    "chrf": chrf,
    "rouge_l": rouge_l,
    "no_repetition": no_repetition,
    "diversity": diversity,
    "prompt_words": prompt_words,
}


COLUMNS = ("answer",)  # keyword arguments that are columns of the dataset, not options


def rule(name: str, options: dict[str, Any]) -> Rule:
    """The rule with its options bound; a column of the dataset with an option's name does not reach it.

    Raises RewardError for an unknown rule, and for an option that is unknown, missing, or has a value of no use.
    """
    rules = RULES | TOY_RULES
    if name not in rules:
        raise RewardError(f"no rule '{name}'; there are {', '.join(rules)}")
    function = rules[name]
    named = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    takes = {p.name: p for p in named if p.name not in COLUMNS}
    unknown = set(options) - set(takes)
    missing = {k for k, p in takes.items() if p.default is p.empty} - set(options)
    if unknown or missing:
        wrong = f"does not take {', '.join(sorted(unknown))}" if unknown else f"needs {', '.join(sorted(missing))}"
        raise RewardError(f"rule '{name}' {wrong}; its options are {', '.join(takes) or 'none'}")

    def bound(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return function(prompts, completions, **{k: v for k, v in columns.items() if k not in takes}, **options)

    try:
        bound([], [], **{p.name: [] for p in named if p.name in COLUMNS})
    except Exception as error:
        raise RewardError(f"rule '{name}': {error}; mend its options") from None
    return bound


def _word_set(words: Sequence[str]) -> set[str]:
    if isinstance(words, str) or not all(isinstance(w, str) for w in words):
        raise TypeError(f"{words!r} is not a list of words")
    return {w.lower() for w in words}


def _said(prompt: Any) -> str:
    """The text of a prompt, of a conversation that of all its messages."""
    return prompt if isinstance(prompt, str) else "\n".join(str(m["content"]) for m in prompt)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def _tokens(text: str) -> list[str]:
    """Runs of letters and digits of any script, lower case."""
    return re.findall(r"\w+", text.lower())


def _number(text: str) -> float | None:
    """After '####' the first number, else the last; a minus between two numbers is no sign ('5-3'), '1,234' is one number."""
    tail = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.split("####")[-1])
    found = re.findall(r"(?<![\d.])-?\d+(?:\.\d+)?", tail)
    return float(found[0] if "####" in text else found[-1]) if found else None
