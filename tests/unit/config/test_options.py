"""The list of all options is a contract: a new one shows in review, has a sentence, and is read somewhere."""

import re
from pathlib import Path

from rlhf_ray.config.options import listing
from rlhf_ray.config.synonyms import SYNONYMS

GOLDEN = Path(__file__).with_name("options.txt")
PACKAGE = Path(__file__).parents[3] / "rlhf_ray"


def test_the_options_are_those_of_the_golden_list():
    assert listing() == GOLDEN.read_text().splitlines(), "regenerate: rlhf-ray options > tests/unit/config/options.txt"


def test_every_option_has_a_sentence():
    for line in listing():
        assert line.rstrip().endswith("."), line


def test_every_option_has_a_reader():
    code = "\n".join(f.read_text() for f in PACKAGE.rglob("*.py") if f.parent.name != "config")
    names = {line.split("  ")[0].split()[0].split(".")[-1].split("[")[0] for line in listing()}
    reader = r"\.{0}\b|[\"']{0}[\"']|case [^\n]*\b{0}="  # an attribute, a string, or a pattern
    unread = {n for n in names if not re.search(reader.format(re.escape(n)), code)}
    assert not unread


def test_every_synonym_names_an_option():
    plain = [re.sub(r"\[\w+\]", "", line.split("  ")[0]) for line in listing()]
    for word, targets in SYNONYMS.items():
        for target in targets:
            assert any(f".{path}".endswith(f".{target}") for path in plain), f"{word}: {target}"
