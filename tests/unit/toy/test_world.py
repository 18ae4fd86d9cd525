"""The toy dataset: its grammar, its truth, and what its splits promise."""

import random

import pytest

from rlhf_ray.toy import world as toy

PROMPT = "review of the hotel : the staff was warm ."
REVIEWS = ("reviews/text", "reviews/sft", "reviews/pairs", "reviews/prompts")


@pytest.mark.parametrize(
    ("completion", "truth", "sentiment", "validity"),
    [
        (" the price was great . its view seemed fresh .", 1.0, 1.0, 1.0),
        (" the price was great . its view seemed stale .", 0.0, 0.0, 1.0),
        (" the price was not great . its view never seemed stale .", 0.0, 0.0, 1.0),
        (" we had no awful music . i found the end not dull .", 1.0, 1.0, 1.0),
        (" we had a cold music .", -1.0, -1.0, 1.0),
        (" the price was great . the price was great .", 0.0, 1.0, 0.5),  # said twice
        (" the staff was warm .", -1.0, 0.0, 0.0),  # the prompt's own clause again
        (" the price was great . its view seemed", 0.0, 1.0, 0.5),  # unfinished
        (" the price was great . seemed its fresh view .", 0.0, 1.0, 0.5),  # no clause
        (" the price was great . . its view seemed fresh .", 1 / 3, 1.0, 2 / 3),  # an empty clause
        (" the price was great . verdict good", 0.0, 1.0, 0.5),
        ("", -1.0, 0.0, 0.0),
        (" .", -1.0, 0.0, 0.0),
        (" the hotel was great .", -1.0, 0.0, 0.0),  # a topic is not a part
    ],
)
def test_judge_by_hand(completion, truth, sentiment, validity):
    verdict = toy.judge(PROMPT, completion)
    assert (verdict.truth, verdict.sentiment, verdict.validity) == pytest.approx((truth, sentiment, validity))


def test_a_generated_review_is_consistent_and_with_no_other_verdict():
    for row in toy.generate("reviews/text", "train", 200, 0):
        body, _, verdict = row["text"].rpartition(" verdict ")
        prompt, _, rest = body.partition(" .")
        right = [v for v in ("good", "mixed", "bad") if toy.is_consistent(f"{prompt} .", f"{rest} verdict {v}")]
        assert right == [verdict]


@pytest.mark.parametrize(
    "completion",
    [
        " the price was great .",
        " the price was great . verdict",
        " the price was great . its view seemed verdict good",
        " the price was . verdict good",
        " the staff was warm . verdict good",  # said twice
        " the price was great . verdict good good",
        "",
    ],
)
def test_what_is_no_consistent_review(completion):
    assert not toy.is_consistent(PROMPT, completion)
    assert toy.is_consistent(PROMPT, " the price was great . verdict good")


@pytest.mark.parametrize("word", [*toy.POSITIVE, *toy.NEGATIVE])
def test_negation_turns_every_pattern_round(word):
    for plain, negated in toy.PATTERNS:
        sign = 1 if word in toy.POSITIVE else -1
        assert toy.polarity(plain.format(part="view", word=word)) == sign
        assert toy.polarity(negated.format(part="view", word=word)) == -sign


@pytest.mark.parametrize("task", toy.TASKS)
def test_the_seed_alone_decides(task):
    random.seed(0)
    first = toy.generate(task, "train", 40, 7)
    random.seed(1)
    assert toy.generate(task, "train", 40, 7) == first
    assert toy.generate(task, "train", 40, 8) != first
    assert toy.generate(task, "train", 20, 7) == first[:20]


def _prompt_of(row):
    return row["prompt"] if "prompt" in row else row["text"].split(" .")[0] + " ."


def test_no_prompt_is_in_both_splits_of_any_review_task():
    prompts = {
        split: {_prompt_of(row) for task in REVIEWS for row in toy.generate(task, split, 900, seed)}
        for split, seed in (("train", 0), ("heldout", 5))
    }
    assert not prompts["train"] & prompts["heldout"]


def test_arithmetic_splits_share_no_question():
    def questions(split, size):
        texts = (r["text"].split(" =")[0] for r in toy.generate("arithmetic/text", split, size, 0))
        return set(texts) | {r["prompt"].removesuffix(" =") for r in toy.generate("arithmetic/sft", split, size, 1)}

    assert not questions("train", 600) & questions("heldout", 300)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_prompts_are_distinct_and_enough(split):
    prompts = [row["prompt"] for row in toy.generate("reviews/prompts", split, 1000, 0)]
    assert len(set(prompts)) == 1000


def test_more_prompts_than_there_are_is_an_error():
    with pytest.raises(ValueError, match=r"only about \d+ different prompts in arithmetic/prompts, heldout"):
        toy.generate("arithmetic/prompts", "heldout", 300, 0)


def test_columns_are_trls():
    columns = {task: set(toy.generate(task, "train", 1, 0)[0]) for task in toy.TASKS}
    assert columns == {
        "reviews/text": {"text"},
        "reviews/sft": {"prompt", "completion"},
        "reviews/pairs": {"prompt", "chosen", "rejected"},
        "reviews/prompts": {"prompt"},
        "reviews/labels": {"text", "label"},
        "translation": {"source", "target"},
        "reviews/tags": {"words", "tags"},
        "reviews/questions": {"question", "context", "answers"},
        "arithmetic/text": {"text"},
        "arithmetic/sft": {"prompt", "completion"},
        "arithmetic/prompts": {"prompt", "answer"},
        "stories/prompts": {"prompt"},
    }


def test_pairs_are_flipped_and_spoiled_as_often_as_said():
    rows = toy.generate("reviews/pairs", "train", 3000, 0)
    sides = [[toy.judge(r["prompt"], r[side]) for side in ("chosen", "rejected")] for r in rows]
    assert all(a.truth != b.truth for a, b in sides)
    flipped = sum(a.truth < b.truth for a, b in sides) / 3000
    spoiled = sum(min(a.validity, b.validity) < 1 for a, b in sides) / 3000
    assert 0.035 < flipped < 0.065
    assert 0.20 < spoiled < 0.30


def test_clauses_are_negated_as_often_as_said():
    rows = toy.generate("reviews/sft", "train", 3000, 0)
    clauses = [c for r in rows for c in r["completion"].split(" .")[:2]]
    negated = sum(bool({"not", "never", "no"} & set(c.split())) for c in clauses) / len(clauses)
    assert 0.13 < negated < 0.17


def test_answers_are_two_valid_sentences_without_a_verdict():
    for row in toy.generate("reviews/sft", "train", 300, 0):
        assert toy.judge(row["prompt"], row["completion"]).validity == 1
        assert row["completion"].count(".") == 2
        assert row["completion"].startswith(" ")
        assert "verdict" not in row["completion"]


def test_a_reviews_verdict_follows_from_its_clauses():
    lengths = set()
    for row in toy.generate("reviews/text", "train", 500, 0):
        body, _, verdict = row["text"].partition(" verdict ")
        clauses = [c.strip() for c in body.split(" : ")[1].split(" .")[:-1]]
        mean = sum(toy.polarity(c) for c in clauses) / len(clauses)
        assert verdict == ("good" if mean > 0.34 else "bad" if mean < -0.34 else "mixed")
        lengths.add(len(clauses))
    assert lengths == {2, 3, 4}


def test_a_label_is_the_verdict_and_a_tag_its_words_kind():
    for row in toy.generate("reviews/labels", "train", 200, 0):
        clauses = [c.strip() for c in row["text"].split(" : ")[1].split(" .")[:-1]]
        mean = sum(toy.polarity(c) for c in clauses) / len(clauses)
        assert row["label"] == ("good" if mean > 0.34 else "bad" if mean < -0.34 else "mixed")
    for row in toy.generate("reviews/tags", "train", 50, 0):
        kinds = {
            w: ("plus" if w in toy.POSITIVE else "minus" if w in toy.NEGATIVE else "part")
            for w in row["words"]
            if w in (*toy.POSITIVE, *toy.NEGATIVE, *toy.PARTS)
        }
        assert row["tags"] == [kinds.get(w, "none") for w in row["words"]]


def test_a_translation_keeps_every_word_and_moves_the_verb():
    assert toy.translate("the view was not great") == "eht weiv ton taerg saw"
    assert toy.translate("i found the view warm") == "i eht weiv mraw dnuof"
    for row in toy.generate("translation", "train", 50, 0):
        back = sorted(w[::-1] for w in row["target"].split())
        assert back == sorted(row["source"].split())


def test_an_answer_is_the_adjective_of_the_part_that_is_asked_for():
    for row in toy.generate("reviews/questions", "train", 200, 0):
        (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start : start + len(text)] == text
        about = [c for c in row["context"].split(" : ")[1].split(" .") if row["question"].split()[-1] in c.split()]
        assert len(about) == 1
        assert text in about[0].split()
        assert text in toy.POLARITY


@pytest.mark.parametrize(
    "task", [t for t in toy.TASKS if not t.startswith(("stories", "translation"))]
)  # for other tokenizers
def test_every_text_comes_back_from_the_tokenizer(task):
    tokenizer = toy.tokenizer()
    for row in toy.generate(task, "train", 50, 0):
        row = {k: " ".join(v) if k == "words" else v for k, v in row.items() if isinstance(v, str) or k == "words"}
        for text in (value for column, value in row.items() if column != "answer"):  # a number, for the checker alone
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text.strip()


def test_what_is_decoded_is_judged_as_what_was_written():
    tokenizer = toy.tokenizer()
    for row in toy.generate("reviews/pairs", "train", 200, 0):
        ids = [*tokenizer(row["rejected"])["input_ids"], tokenizer.eos_token_id]
        read = tokenizer.decode(ids, skip_special_tokens=True)
        assert toy.judge(row["prompt"], read) == toy.judge(row["prompt"], row["rejected"])


def test_the_tokenizer_adds_nothing_and_has_its_special_tokens_apart():
    tokenizer = toy.tokenizer()
    special = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    assert special == [0, 1, 2, 3]
    assert 60 <= len(tokenizer) <= 110
    assert tokenizer.convert_ids_to_tokens(tokenizer("the view was elsewhere")["input_ids"]) == [
        "the",
        "view",
        "was",
        "<unk>",
    ]
    prompt, completion = PROMPT, " the price was great ."
    joined = tokenizer(prompt + completion)["input_ids"]
    assert joined == tokenizer(prompt)["input_ids"] + tokenizer(completion, add_special_tokens=False)["input_ids"]


def test_the_tokenizer_survives_being_saved(tmp_path):
    tokenizer = toy.tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)  # AutoTokenizer's import takes longer than all of these tests
    assert again(PROMPT)["input_ids"] == toy.tokenizer()(PROMPT)["input_ids"]
    assert (again.pad_token_id, again.eos_token_id) == (0, 2)


@pytest.mark.parametrize(
    ("prompt", "completion", "right"),
    [
        ("3 + 4 =", " 7", True),
        ("1 2 + 7 =", " 1 9", True),
        ("1 4 - 1 1 =", " 3", True),
        ("1 2 + 7 =", " 9 1", False),
        ("3 + 4 =", "", False),
        ("3 + 4 =", " 7 7", False),
    ],
)
def test_arithmetic_checker_by_hand(prompt, completion, right):
    assert toy.arithmetic_is_right(prompt, completion) is right


def test_arithmetic_answers_are_right():
    for row in toy.generate("arithmetic/sft", "train", 200, 0):
        assert toy.arithmetic_is_right(row["prompt"], row["completion"])
    for row in toy.generate("arithmetic/prompts", "train", 100, 0):
        assert toy.arithmetic_is_right(row["prompt"], row["answer"])


def test_unknown_names_are_errors_that_name_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown task 'reviews'.*reviews/pairs.*arithmetic/prompts"):
        toy.generate("reviews", "train", 1, 0)
    with pytest.raises(ValueError, match="unknown split 'test'; there are train and heldout"):
        toy.generate("reviews/sft", "test", 1, 0)
