"""Which scorer computes a reward term, by the term's ``type``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .classifier import ClassifierScorer
from .function import UserFunction
from .likelihood import LikelihoodScorer
from .model import ModelScorer
from .reward import ScorerContext, TermScorer
from .rules import RuleScorer

SCORERS: dict[str, Callable[[Any, ScorerContext], TermScorer]] = {
    "rule": RuleScorer,
    "function": UserFunction,
    "model": ModelScorer,
    "likelihood": LikelihoodScorer,
    "classifier": ClassifierScorer,
}


def build_scorer(term: Any, context: ScorerContext) -> TermScorer:
    """The scorer of a term. Raises RewardError (or BadInput) for a term that cannot be had."""
    return SCORERS[term.type](term, context)
