"""Personal data in text, replaced by its kind and counted: what a pattern can find, and no more than that."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

Row = dict[str, Any]


def _luhn(text: str) -> bool:
    """Whether the digits pass the check of payment cards (ISO/IEC 7812-1)."""
    digits = [int(c) for c in text if c.isdigit()]
    if not 13 <= len(digits) <= 19:
        return False
    doubled = [d if i % 2 == 0 else (2 * d - 9 if d > 4 else 2 * d) for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _iban(text: str) -> bool:
    """Whether an account number passes its check: 1 modulo 97, letters counted from 10 (ISO 13616)."""
    plain = re.sub(r"\s", "", text).upper()
    moved = plain[4:] + plain[:4]
    return 15 <= len(plain) <= 34 and int("".join(str(int(c, 36)) for c in moved)) % 97 == 1


def _ip(text: str) -> bool:
    return all(int(part) < 256 for part in text.split("."))


def _phone(text: str) -> bool:
    return 8 <= sum(c.isdigit() for c in text) <= 15


PATTERNS: dict[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "email": (re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), lambda _: True),
    "key": (
        re.compile(
            r"\b(?:sk|pk|ghp|gho|xox[abp]|AKIA|hf|AIza)[-_A-Za-z0-9]{16,}\b"
            r"|(?s:-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z))"
        ),
        lambda _: True,
    ),
    "iban": (re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), _iban),
    "card": (re.compile(r"\b\d(?:[ -]?\d){12,18}\b"), _luhn),
    "ip": (re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b"), _ip),
    "phone": (re.compile(r"(?<![\w.])(?:\+\d{1,3}[ .-]?|\(\d{2,5}\) ?|0)\d(?:[ ./-]?\d){5,12}(?![\w.]*\d)"), _phone),
}


def text(given: str, kinds: Iterable[str], counts: Counter[str]) -> str:
    """The text with what is found replaced by [EMAIL], [PHONE], ...; adds to ``counts`` how often."""
    for kind in PATTERNS:
        if kind not in kinds:
            continue
        pattern, sound = PATTERNS[kind]

        def put(match: re.Match[str], kind: str = kind, sound: Callable[[str], bool] = sound) -> str:
            if not sound(match[0]):
                return match[0]
            counts[kind] += 1
            return f"[{kind.upper()}]"

        given = pattern.sub(put, given)
    return given


def row(given: Row, kinds: Iterable[str], counts: Counter[str]) -> Row:
    """The row with every text in it redacted, in lists and messages too."""
    return {name: _value(value, kinds, counts) for name, value in given.items()}


def _value(value: Any, kinds: Iterable[str], counts: Counter[str]) -> Any:
    if isinstance(value, str):
        return text(value, kinds, counts)
    if isinstance(value, list):
        return [_value(v, kinds, counts) for v in value]
    if isinstance(value, dict):
        return {k: _value(v, kinds, counts) for k, v in value.items()}
    return value
