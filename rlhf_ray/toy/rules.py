"""Rules that measure answers to the toy dataset's prompts; jobs name them like any other rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .world import arithmetic_is_right, is_consistent, judge


def toy_truth(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """The truth of a review: see :class:`rlhf_ray.toy.world.Verdict`."""
    return [judge(p, c).truth for p, c in zip(prompts, completions, strict=True)]


def toy_sentiment(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """The sentiment of a review's valid clauses."""
    return [judge(p, c).sentiment for p, c in zip(prompts, completions, strict=True)]


def toy_validity(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """The share of a review's clauses that are valid."""
    return [judge(p, c).validity for p, c in zip(prompts, completions, strict=True)]


def toy_consistency(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """1 if a review closes with the verdict of its clauses."""
    return [float(is_consistent(p, c)) for p, c in zip(prompts, completions, strict=True)]


def toy_arithmetic(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """1 if the answer to a sum is right."""
    return [float(arithmetic_is_right(p, c)) for p, c in zip(prompts, completions, strict=True)]


TOY_RULES: dict[str, Callable[..., list[float]]] = {
    "toy_truth": toy_truth,
    "toy_sentiment": toy_sentiment,
    "toy_validity": toy_validity,
    "toy_consistency": toy_consistency,
    "toy_arithmetic": toy_arithmetic,
}
