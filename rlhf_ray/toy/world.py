"""The toy dataset: synthetic reviews and other small tasks with a known truth; no download.

Reviews. A review names a topic and has two to four clauses about parts of it, then a verdict. A clause has one of four
patterns and a positive or negative adjective; some are negated. A mood makes the clauses of a review lean one way. A
prompt is the topic and a first clause; the right answer is two more clauses, and no verdict. ``judge`` measures an
answer.

    review of the hotel : the staff was lovely . i found the view not cold . verdict good

The same reviews give classes (good, mixed or bad, without the verdict), a tag for each word (part, plus, minus or
none), and questions about a part, answered by its adjective.

Translation. The same clauses in an invented language: words spelt backwards, the verb last, the adjective before it.

Arithmetic. Sums and differences of small numbers, digit by digit; ``arithmetic_is_right`` checks an answer.

Stories. First sentences of children's stories in plain English, as prompts for real models.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOPICS = ("hotel", "cafe", "film", "book", "park", "train", "shop", "game")
PARTS = ("staff", "price", "style", "music", "view", "start", "end", "look")
POSITIVE = ("great", "lovely", "fresh", "warm", "bright", "charming")
NEGATIVE = ("awful", "ugly", "stale", "cold", "dull", "dreadful")
POLARITY = dict.fromkeys(POSITIVE, 1) | dict.fromkeys(NEGATIVE, -1)
PATTERNS: tuple[tuple[str, str], ...] = (  # plain, negated
    ("the {part} was {word}", "the {part} was not {word}"),
    ("i found the {part} {word}", "i found the {part} not {word}"),
    ("its {part} seemed {word}", "its {part} never seemed {word}"),
    ("we had a {word} {part}", "we had no {word} {part}"),
)
NEGATED = 0.15  # share of clauses
MOODS = (0.85, 0.5, 0.15)  # chance of a positive clause
FLIPPED = 0.05  # share of pairs whose worse side is the chosen one
SPOILED = 0.25  # share of pairs with one side that breaks the grammar
WORDS = (
    "review of the : . was not i found its seemed never we had a no verdict good mixed bad + - = "
    + " ".join("0123456789")
).split()  # fmt: skip

OPENINGS = (
    "Once upon a time, there was a {size} {hero} named {name}.",
    "One day, a {size} {hero} named {name} went to the {place}.",
    "{name} was a {size} {hero}. One day {name} was in the {place}.",
    "{name} and a {size} {hero} were playing in the {place}.",
)
SIZES = ("little", "big", "small", "old", "young")
HEROES = ("girl", "boy", "dog", "cat", "bird", "rabbit", "bear", "fish", "mouse", "frog")
NAMES = ("Lily", "Tom", "Max", "Anna", "Ben", "Mia", "Sam", "Sue", "Tim", "Lucy", "Jack", "Amy")
PLACES = ("park", "garden", "forest", "house", "kitchen", "beach", "school", "farm")

Clause = tuple[str, str, int, bool]
"""Part, adjective, pattern (an index of PATTERNS), and whether it is negated."""
MakeRow = Callable[[random.Random], tuple[str, dict[str, Any]]]
"""Draws a key, which decides the split, and a row."""


@dataclass(frozen=True)
class Verdict:
    """The measures of an answer to a review prompt.

    truth: mean over its clauses of +1 or -1, where an invalid, repeated or unfinished clause counts -1; -1 if there is
    none. sentiment: the mean over valid clauses only (0 if there is none). validity: the share of valid clauses.
    """

    truth: float
    sentiment: float
    validity: float


def vocabulary() -> list[str]:
    """The tokens of the toy tokenizer, in order."""
    return ["<pad>", "<bos>", "<eos>", "<unk>", *WORDS, *TOPICS, *PARTS, *POSITIVE, *NEGATIVE]


def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the toy dataset's words: pad 0, bos 1, eos 2, unk 3. Decoding gives the words back."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary())}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=1 << 20,
    )


def judge(prompt: str, completion: str) -> Verdict:
    """The measures of a completion of a review prompt ('review of the hotel : the staff was warm .')."""
    first_clause = " ".join(prompt.split()[5:])
    seen = {first_clause.removesuffix(" .")} if first_clause else set()
    *finished, rest = completion.replace(".", " . ").split(".")
    scores: list[int | None] = []
    for text in finished:
        clause = " ".join(text.split())
        scores.append(None if clause in seen else polarity(clause))
        seen.add(clause)
    if rest.split() or not scores:
        scores.append(None)
    valid = [s for s in scores if s is not None]
    truth = sum(-1 if s is None else s for s in scores) / len(scores)
    return Verdict(truth, sum(valid) / len(valid) if valid else 0.0, len(valid) / len(scores))


def polarity(clause: str) -> int | None:
    """+1 or -1 for a clause of the grammar, else None."""
    return _CLAUSES.get(clause)


def is_consistent(prompt: str, completion: str) -> bool:
    """Whether a review (prompt and completion) ends with the verdict of its clauses, all valid and different."""
    text = " ".join((prompt + completion).replace(".", " . ").split())
    body, _, verdict = text.partition(" : ")[2].partition(" verdict ")
    *clauses, rest = body.split(" .")
    polarities = [p for p in map(polarity, {clause.strip() for clause in clauses}) if p is not None]
    return not rest and len(polarities) == len(clauses) > 0 and verdict == _verdict(polarities)


def arithmetic_is_right(prompt: str, completion: str) -> bool:
    """Whether '1 2 + 7 =' is continued by ' 1 9'."""
    left, operator, right = prompt.replace(" ", "").removesuffix("=").partition("+" if "+" in prompt else "-")
    value = int(left) + int(right) if operator == "+" else int(left) - int(right)
    return completion.replace(" ", "") == str(value)


def generate(task: str, split: str, size: int, seed: int) -> list[dict[str, Any]]:
    """``size`` rows of a task in TRL's columns; 'train' and 'heldout' share no prompt, and '.../prompts' repeats none.

    Raises ValueError for an unknown task or split, naming the known ones, and for more prompts than there are.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task '{task}' of the toy dataset; there are {', '.join(TASKS)}")
    if split not in ("train", "heldout"):
        raise ValueError(f"unknown split '{split}'; there are train and heldout")
    draw = random.Random(f"{task} {split} {seed}")
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for _ in range(200 * size):
        key, row = TASKS[task](draw)
        if _heldout(key) == (split == "heldout") and not (task.endswith("/prompts") and key in seen):
            rows.append(row)
            seen.add(key)
        if len(rows) == size:
            return rows
    raise ValueError(
        f"the toy dataset has only about {len(rows)} different prompts in {task}, {split}; ask for fewer than {size}"
    )


def _heldout(key: str) -> bool:
    return zlib.crc32(key.encode()) % 5 == 0


def _text(clause: Clause) -> str:
    part, word, pattern, negated = clause
    return PATTERNS[pattern][negated].format(part=part, word=word)


_CLAUSES = {
    _text((part, word, pattern, negated)): -value if negated else value
    for part in PARTS
    for word, value in POLARITY.items()
    for pattern in range(len(PATTERNS))
    for negated in (False, True)
}


def _clause(draw: random.Random, mood: float) -> str:
    positive = draw.random() < mood
    negated = draw.random() < NEGATED
    word = draw.choice(POSITIVE if positive != negated else NEGATIVE)
    return _text((draw.choice(PARTS), word, draw.randrange(len(PATTERNS)), negated))


def _clauses(draw: random.Random, mood: float, count: int, excluded: str) -> list[str]:
    """``count`` different clauses, none of them ``excluded``."""
    clauses: list[str] = []
    while len(clauses) < count:
        clause = _clause(draw, mood)
        if clause != excluded and clause not in clauses:
            clauses.append(clause)
    return clauses


def _prompt(draw: random.Random, mood: float) -> tuple[str, str]:
    """A first clause, and a topic and that clause as a prompt."""
    clause = _clause(draw, mood)
    return clause, f"review of the {draw.choice(TOPICS)} : {clause} ."


def _sentences(clauses: list[str]) -> str:
    return "".join(f" {clause} ." for clause in clauses)


def _review(draw: random.Random) -> tuple[str, dict[str, Any]]:
    mood = draw.choice(MOODS)
    first, prompt = _prompt(draw, mood)
    clauses = _clauses(draw, mood, draw.randint(1, 3), first)
    verdict = _verdict([_CLAUSES[c] for c in [first, *clauses]])
    return prompt, {"text": f"{prompt}{_sentences(clauses)} verdict {verdict}"}


def _verdict(polarities: list[int]) -> str:
    mean = sum(polarities) / len(polarities)
    return "good" if mean > 0.34 else "bad" if mean < -0.34 else "mixed"


def _labelled(draw: random.Random) -> tuple[str, dict[str, Any]]:
    key, row = _review(draw)
    text, _, verdict = row["text"].rpartition(" verdict ")
    return key, {"text": text, "label": verdict}


def _tagged(draw: random.Random) -> tuple[str, dict[str, Any]]:
    key, row = _labelled(draw)
    words = row["text"].split()
    return key, {"words": words, "tags": [_tag(w) for w in words]}


def _tag(word: str) -> str:
    if word in PARTS:
        return "part"
    if word in POSITIVE:
        return "plus"
    return "minus" if word in NEGATIVE else "none"


def _asked(draw: random.Random) -> tuple[str, dict[str, Any]]:
    """A review whose clauses are about different parts, and a question about one of them."""
    parts = draw.sample(PARTS, 3)
    clauses = [_text((p, draw.choice(POSITIVE + NEGATIVE), draw.randrange(len(PATTERNS)), False)) for p in parts]
    context = f"review of the {draw.choice(TOPICS)} :{_sentences(clauses)}"
    asked = draw.randrange(3)
    answer = next(w for w in clauses[asked].split() if w in POLARITY)
    start = context.index(clauses[asked]) + clauses[asked].index(answer)
    return context, {
        "question": f"was the {parts[asked]}",
        "context": context,
        "answers": {"text": [answer], "answer_start": [start]},
    }


def translate(clause: str) -> str:
    """A clause in the invented language: subject, rest, verb, each word spelt backwards."""
    words = clause.split()
    verb = next(i for i, w in enumerate(words) if w in ("was", "found", "seemed", "had"))
    return " ".join(w[::-1] for w in [*words[:verb], *words[verb + 1 :], words[verb]])


def _translation(draw: random.Random) -> tuple[str, dict[str, Any]]:
    clauses = _clauses(draw, 0.5, draw.randint(1, 2), "")
    source, target = (" , ".join(side) + " ." for side in (clauses, [translate(c) for c in clauses]))
    return source, {"source": source, "target": target}


def _answer(draw: random.Random) -> tuple[str, dict[str, Any]]:
    mood = draw.choice(MOODS)
    first, prompt = _prompt(draw, mood)
    return prompt, {"prompt": prompt, "completion": _sentences(_clauses(draw, mood, 2, first))}


def _pair(draw: random.Random) -> tuple[str, dict[str, Any]]:
    first, prompt = _prompt(draw, draw.choice(MOODS))
    while True:
        sides = [_sentences(_clauses(draw, draw.choice(MOODS), 2, first)) for _ in range(2)]
        if draw.random() < SPOILED:
            sides[1] = draw.choice((_shuffled, _doubled, _cut))(draw, sides[1])
        truths = [judge(prompt, side).truth for side in sides]
        if truths[0] != truths[1]:
            break
    chosen, rejected = sides if truths[0] > truths[1] else reversed(sides)
    if draw.random() < FLIPPED:
        chosen, rejected = rejected, chosen
    return prompt, {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _shuffled(draw: random.Random, text: str) -> str:
    words = text.split()
    draw.shuffle(words)
    return " " + " ".join(words)


def _doubled(draw: random.Random, text: str) -> str:
    return "".join(f" {text.split(' .')[0].strip()} ." for _ in range(2))


def _cut(draw: random.Random, text: str) -> str:
    words = text.split()
    return " " + " ".join(words[: draw.randint(1, len(words) - 2)])


def _question(draw: random.Random) -> tuple[str, dict[str, Any]]:
    a, b, operator = draw.randrange(20), draw.randrange(20), draw.choice("+-")
    a, b = max(a, b), min(a, b)
    value = a + b if operator == "+" else a - b
    return f"{a}{operator}{b}", {
        "prompt": f"{_digits(a)} {operator} {_digits(b)} =",
        "answer": str(value),
        "value": _digits(value),
    }


def _opening(draw: random.Random) -> tuple[str, dict[str, Any]]:
    lists = {"size": SIZES, "hero": HEROES, "name": NAMES, "place": PLACES}
    text = draw.choice(OPENINGS).format(**{key: draw.choice(values) for key, values in lists.items()})
    return text, {"prompt": text}


def _digits(number: int) -> str:
    return " ".join(str(number))


def _only(make: MakeRow, **columns: str) -> MakeRow:
    """The same task with these columns: new name = a format string of the old row."""

    def make_columns(draw: random.Random) -> tuple[str, dict[str, Any]]:
        key, row = make(draw)
        return key, {name: form.format(**row) for name, form in columns.items()}

    return make_columns


TASKS: dict[str, MakeRow] = {
    "reviews/text": _review,
    "reviews/sft": _answer,
    "reviews/pairs": _pair,
    "reviews/prompts": _only(_answer, prompt="{prompt}"),
    "reviews/labels": _labelled,
    "reviews/tags": _tagged,
    "reviews/questions": _asked,
    "translation": _translation,
    "stories/prompts": _opening,
    "arithmetic/text": _only(_question, text="{prompt} {value}"),
    "arithmetic/sft": _only(_question, prompt="{prompt}", completion=" {value}"),
    "arithmetic/prompts": _only(_question, prompt="{prompt}", answer="{answer}"),
}
