"""Rules that ship with the package. Each has TRL's signature after its options are bound; see :func:`bind_rule`."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..config import RuleReward
from ..quality import text as texts
from ..toy.rules import TOY_RULES
from .reward import RewardError, Samples, ScorerContext, TermScorer, checked

Rule = Callable[..., list[float]]


class RuleScorer(TermScorer):
    """A rule with the options of a term."""

    def __init__(self, term: RuleReward, context: ScorerContext) -> None:
        self.term, self.rule = term, bind_rule(term.rule, term.options)

    def score(self, samples: Samples) -> np.ndarray:
        """As :class:`TermScorer` says. Rules get text, also in answer to conversations."""
        try:
            values = self.rule(samples.prompts, samples.completions, **samples.columns)
        except Exception as error:
            raise RewardError(
                f"reward '{self.term.name}' (rule {self.term.rule}): {type(error).__name__}: {error}; the rule does not "
                f"fit the dataset, which has {samples.column_names()}"
            ) from error
        example_id = samples.batch.example_id.tolist()
        return checked(self.term.name, f"rule {self.term.rule}", values, example_id, self.term.on_error)


def word_share(prompts: list[str], completions: list[str], *, words: Sequence[str], **columns: Any) -> list[float]:
    """Share of a completion's words that are in ``words`` (letters only, lower case)."""
    counted = _word_set(words)
    return [sum(w in counted for w in text) / max(1, len(text)) for text in map(_words, completions)]


def word_balance(
    prompts: list[str], completions: list[str], *, positive: Sequence[str], negative: Sequence[str], **columns: Any
) -> list[float]:
    """(positive - negative words) / (positive + negative + 1): between -1 and 1."""
    plus, minus = _word_set(positive), _word_set(negative)
    scores = []
    for words in map(_words, completions):
        p, n = sum(w in plus for w in words), sum(w in minus for w in words)
        scores.append((p - n) / (p + n + 1))
    return scores


def contains(prompts: list[str], completions: list[str], *, text: str, **columns: Any) -> list[float]:
    """1 if ``text`` occurs in the completion, in upper or lower case."""
    lowered = text.lower()
    return [float(lowered in c.lower()) for c in completions]


def length(
    prompts: list[str], completions: list[str], *, target: int, unit: str = "words", **columns: Any
) -> list[float]:
    """1 at ``target`` words (or ``unit: chars``), falling linearly to 0 at none and at twice as many."""
    if unit not in ("words", "chars") or not target > 0:
        raise ValueError("target must be above 0, and unit 'words' or 'chars'")
    sizes = [len(c.split() if unit == "words" else c) for c in completions]
    return [max(0.0, 1.0 - abs(size - target) / target) for size in sizes]


def regex_match(prompts: list[str], completions: list[str], *, pattern: str, **columns: Any) -> list[float]:
    """1 if ``pattern`` is found in the completion."""
    compiled = re.compile(pattern)
    return [float(compiled.search(c) is not None) for c in completions]


def layout(prompts: list[str], completions: list[str], *, pattern: str, **columns: Any) -> list[float]:
    """1 if the whole completion, without blanks at its ends, matches ``pattern``; a dot matches line ends too."""
    compiled = re.compile(pattern, re.DOTALL)
    return [float(compiled.fullmatch(c.strip()) is not None) for c in completions]


def exact_answer(
    prompts: list[str], completions: list[str], *, answer: Sequence[Any], strict: bool = False, **columns: Any
) -> list[float]:
    """1 if the completion's number equals that of the column ``answer``.

    The number is the first after '####' or, without that mark, the last one. ``strict``: without the mark it is none.
    """
    numbers = [None if strict and "####" not in c else _number(c) for c in completions]
    return [float(n is not None and n == _number(str(a))) for n, a in zip(numbers, answer, strict=True)]


def exact_match(prompts: list[str], completions: list[str], *, answer: Sequence[Any], **columns: Any) -> list[float]:
    """1 if the completion is one of the answers, after SQuAD's normalisation."""
    return [texts.exact_match(c, texts.references(a)) for c, a in zip(completions, answer, strict=True)]


def right_class(
    prompts: list[str], completions: list[str], *, answer: Sequence[Any], weights: dict[str, float], **columns: Any
) -> list[float]:
    """The weight of the right class if the completion names it, else 0.

    With inverse frequencies as weights no class is worth guessing.
    """
    weight_of = {str(name): float(weight) for name, weight in weights.items()}
    rows = zip(completions, answer, strict=True)
    return [weight_of.get(str(a), 1.0) * float(c.strip() == str(a).strip()) for c, a in rows]


def token_f1(prompts: list[str], completions: list[str], *, answer: Sequence[Any], **columns: Any) -> list[float]:
    """Overlap of the completion's words with the best of the answers: SQuAD's F1."""
    return [texts.token_f1(c, texts.references(a)) for c, a in zip(completions, answer, strict=True)]


def token_recall(prompts: list[str], completions: list[str], *, answer: Sequence[Any], **columns: Any) -> list[float]:
    """Completeness: the share of the answer's words that the completion has, the best of the answers."""
    return [texts.token_recall(c, texts.references(a)) for c, a in zip(completions, answer, strict=True)]


def coherence(prompts: list[Any], completions: list[str], *, n: int = 2, ends: str = "", **columns: Any) -> list[float]:
    """The share of a completion's words that the prompt has too, times the share of its n-grams that are new in it.

    0 for an empty completion and, with ``ends``, for one whose last character is none of these.
    """
    scores = []
    for prompt, completion in zip(prompts, completions, strict=True):
        words, prompt_tokens = _tokens(completion), set(_tokens(_prompt_text(prompt)))
        ended = not ends or completion.rstrip().endswith(tuple(ends))
        grounded = sum(w in prompt_tokens for w in words) / len(words) if words and ended else 0.0
        scores.append(grounded * (1.0 - texts.repetition(completion, n)))
    return scores


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
    """Each different n-gram is worth 1, shared equally by the samples of the prompt that have it.

    The score is the sum over a completion's n-grams divided by their number. A repetition within a completion so costs as
    much as one of another sample. Weighted by their numbers of n-grams, the samples' mean is distinct-n of them all
    (Li et al. 2016, arXiv 1510.03055).
    """
    grams_of = [texts.grams(c, n) for c in completions]
    keys = [_prompt_text(p) for p in prompts]
    holders = Counter((key, gram) for key, grams in zip(keys, grams_of, strict=True) for gram in set(grams))
    rows = zip(keys, grams_of, strict=True)
    return [sum(1 / holders[key, gram] for gram in set(grams)) / max(1, len(grams)) for key, grams in rows]


def prompt_words(
    prompts: list[Any], completions: list[str], *, ignore: Sequence[str] = (), **columns: Any
) -> list[float]:
    """Consistency: the share of the prompt's different words that the completion has.

    The words in ``ignore`` do not count; 1 if no word is left.
    """
    ignored, scores = _word_set(ignore), []
    for prompt, completion in zip(prompts, completions, strict=True):
        words = set(_tokens(_prompt_text(prompt))) - ignored
        scores.append(len(words & set(_tokens(completion))) / len(words) if words else 1.0)
    return scores


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


def bind_rule(name: str, options: dict[str, Any]) -> Rule:
    """The rule with its options bound; a column of the dataset with an option's name does not reach it.

    Raises RewardError for an unknown rule, and for an option that is unknown, missing, or has a value that cannot be used.
    """
    rules = RULES | TOY_RULES
    if name not in rules:
        raise RewardError(f"no rule '{name}'; there are {', '.join(rules)}")
    function = rules[name]
    named = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    option_of = {p.name: p for p in named if p.name not in COLUMNS}
    unknown = set(options) - set(option_of)
    missing = {k for k, p in option_of.items() if p.default is p.empty} - set(options)
    if unknown or missing:
        problem = f"does not take {', '.join(sorted(unknown))}" if unknown else f"needs {', '.join(sorted(missing))}"
        raise RewardError(f"rule '{name}' {problem}; its options are {', '.join(option_of) or 'none'}")

    def bound(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return function(prompts, completions, **{k: v for k, v in columns.items() if k not in option_of}, **options)

    try:
        bound([], [], **{p.name: [] for p in named if p.name in COLUMNS})
    except Exception as error:
        raise RewardError(f"rule '{name}': {error}; correct its options") from None
    return bound


def rule_columns(name: str) -> list[str]:
    """The columns of the dataset that a rule reads; none for an unknown rule."""
    function = (RULES | TOY_RULES).get(name)
    return [] if function is None else [p for p in inspect.signature(function).parameters if p in COLUMNS]


def _word_set(words: Sequence[str]) -> set[str]:
    if isinstance(words, str) or not all(isinstance(w, str) for w in words):
        raise TypeError(f"{words!r} is not a list of words")
    return {w.lower() for w in words}


def _prompt_text(prompt: Any) -> str:
    """The text of a prompt, or of all messages of a conversation."""
    return prompt if isinstance(prompt, str) else "\n".join(str(m["content"]) for m in prompt)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def _tokens(text: str) -> list[str]:
    """Runs of letters and digits of any script, lower case."""
    return re.findall(r"\w+", text.lower())


def _number(text: str) -> float | None:
    """After '####' the first number, else the last one.

    A minus between two numbers is no sign ('5-3'), and '1,234' is one number.
    """
    tail = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.split("####")[-1])
    numbers = re.findall(r"(?<![\d.])-?\d+(?:\.\d+)?", tail)
    return float(numbers[0] if "####" in text else numbers[-1]) if numbers else None
