"""Measures of texts, alone and against references: question answering, translation, summaries, diversity.

BLEU and chrF are sacrebleu's, ROUGE is Google's rouge-score; both come with the extra `metrics`.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..config import BadInput

SACREBLEU = "BLEU and chrF need the package sacrebleu: pip install 'rlhf-ray[metrics]'"

References = Sequence[Sequence[str]]
"""The references of each text, at least one."""


def references(value: Any) -> list[str]:
    """The references in a dataset's cell: a text, a list of them, or SQuAD's {text: [...], answer_start: [...]}.

    Raises BadInput where there is none.
    """
    texts = value["text"] if isinstance(value, dict) and "text" in value else value
    texts = list(texts) if isinstance(texts, list | tuple) else [texts]
    if not texts or any(r is None for r in texts):
        raise BadInput(f"a reference is {value!r}; give a text or a list of texts")
    return [str(r) for r in texts]


def normalised(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single blanks.

    Rajpurkar et al. 2016, arXiv 1606.05250.
    """
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def exact_match(text: str, references: Sequence[str]) -> float:
    """1 where the normalised text is one of the normalised references."""
    return float(normalised(text) in {normalised(r) for r in references})


def token_f1(text: str, references: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of normalised words, the best over references; empty against empty is 1."""
    return max(_f1(normalised(text).split(), normalised(r).split()) for r in references)


def token_recall(text: str, references: Sequence[str]) -> float:
    """Share of a reference's normalised words that the text has, the best over references; 1 for an empty reference."""
    return max(_recall(normalised(text).split(), normalised(r).split()) for r in references)


def _recall(words: list[str], reference: list[str]) -> float:
    return sum((Counter(words) & Counter(reference)).values()) / len(reference) if reference else 1.0


def _f1(words: list[str], reference: list[str]) -> float:
    if not words or not reference:
        return float(words == reference)
    common = sum((Counter(words) & Counter(reference)).values())
    return 2 * common / (len(words) + len(reference))


def bleu(texts: Sequence[str], references: References, language: str | None = None) -> float:
    """Corpus BLEU, 0 to 100 (Papineni et al. 2002; Post 2018, arXiv 1804.08771).

    ``language`` zh, ja or ko takes its tokenizer.
    """
    names = {"zh": "zh", "ja": "char", "ko": "char"}
    metric = sacrebleu().BLEU(tokenize=names.get(language or "", "13a"))
    return float(metric.corpus_score(list(texts), _columns(references)).score)


def chrf(texts: Sequence[str], references: References) -> float:
    """Corpus chrF2, 0 to 100 (Popovic 2015)."""
    return float(sacrebleu().CHRF().corpus_score(list(texts), _columns(references)).score)


def sentence_chrf(texts: Sequence[str], references: References) -> list[float]:
    """chrF2 of each text, 0 to 1: smooth enough to be a reward."""
    metric = sacrebleu().CHRF()
    return [float(metric.sentence_score(t, list(r)).score) / 100 for t, r in zip(texts, references, strict=True)]


def rouge_l(texts: Sequence[str], references: References) -> list[float]:
    """F measure (0 to 1) of each text's longest common subsequence with a reference, the best over references.

    Lin 2004.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise BadInput("ROUGE needs rouge-score: pip install 'rlhf-ray[metrics]'") from None
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    return [
        max(float(scorer.score(reference, t)["rougeL"].fmeasure) for reference in r)
        for t, r in zip(texts, references, strict=True)
    ]


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words over all n-grams of all texts, 0 to 1 (Li et al. 2016, arXiv 1510.03055)."""
    all_grams = [gram for text in texts for gram in grams(text, n)]
    return len(set(all_grams)) / len(all_grams) if all_grams else 0.0


def repetition(text: str, n: int = 3) -> float:
    """Share of a text's n-grams that it had before, 0 to 1."""
    all_grams = grams(text, n)
    return 1 - len(set(all_grams)) / len(all_grams) if all_grams else 0.0


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Chance that one of k of the samples is right, without bias: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv
    2107.03374).

    Raises ValueError for fewer samples than k.
    """
    if num_samples < k:
        raise ValueError(f"pass@{k} needs at least {k} samples, got {num_samples}")
    return 1 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def grams(text: str, n: int) -> list[tuple[str, ...]]:
    """The n-grams of a text's words, in order."""
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _columns(references: References) -> list[list[str]]:
    """The first, second, ... references of all texts, as sacrebleu wants them; who has fewer repeats the last."""
    most = max(map(len, references))
    return [[r[min(i, len(r) - 1)] for r in references] for i in range(most)]


def sacrebleu() -> Any:
    """sacrebleu's metrics. Raises BadInput where it is not installed."""
    try:
        from sacrebleu import metrics
    except ImportError:
        raise BadInput(SACREBLEU) from None
    return metrics
