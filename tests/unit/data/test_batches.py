"""From rows to Batches: what is a token, what bears loss, what is dropped."""

import numpy as np
import pytest
from tokenizers import processors

from rlhf_ray.data import batches
from rlhf_ray.data.examples import DataError, Rows
from rlhf_ray.toy import world as toy

BOS, EOS = 1, 2
PROMPT, GOOD, BAD = "review of the hotel :", " the view was great .", " the view was ugly ."


@pytest.fixture
def tokenizer():
    return toy.tokenizer()


@pytest.fixture
def with_bos():
    """The same tokenizer, putting <bos> before every text, as Llama's does."""
    made = toy.tokenizer()
    made.backend_tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", None, [("<bos>", BOS)])
    return made


def _rows(*rows):
    return Rows(rows, "x.jsonl", range(1, len(rows) + 1), "evaluate.data")


def _ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _lists(batch, name="tokens"):
    return [s.tolist() for s in batch.sequences(name)]


def test_language_model_ends_in_eos_and_bears_loss_on_all_but_the_first(tokenizer):
    made = batches.language_model(_rows({"text": PROMPT}, {"text": "the view"}), tokenizer, 99)
    assert _lists(made.batch) == [[*_ids(tokenizer, PROMPT), EOS], [*_ids(tokenizer, "the view"), EOS]]
    assert _lists(made.batch, "response_mask") == [[0, 1, 1, 1, 1, 1], [0, 1, 1]]
    assert made.dropped == 0


def test_language_model_cuts_long_texts_into_pieces_of_the_same_example(tokenizer):
    text = "the view was great . the end was ugly ."
    made = batches.language_model(_rows({"text": "the view"}, {"text": text}), tokenizer, 4)
    assert [len(s) for s in made.batch.sequences()] == [3, 4, 4, 3]
    assert made.batch.example_id.tolist() == [0, 1, 1, 1]
    assert [i for s in _lists(made.batch)[1:] for i in s] == [*_ids(tokenizer, text), EOS]


def test_supervised_bears_loss_on_completion_and_eos(tokenizer):
    batch = batches.supervised(_rows({"prompt": PROMPT, "completion": GOOD}), tokenizer, 99).batch
    prompt, completion = _ids(tokenizer, PROMPT), _ids(tokenizer, GOOD)
    assert _lists(batch) == [[*prompt, *completion, EOS]]
    assert _lists(batch, "response_mask") == [[0] * len(prompt) + [1] * (len(completion) + 1)]


def test_an_eos_in_the_text_is_not_doubled(tokenizer):
    batch = batches.supervised(_rows({"prompt": PROMPT, "completion": GOOD + " <eos>"}), tokenizer, 99).batch
    assert _lists(batch)[0].count(EOS) == 1


def test_a_bos_stands_once_and_before_the_prompt(with_bos):
    rows = [{"prompt": PROMPT, "completion": GOOD, "chosen": GOOD, "rejected": BAD}]
    for make in (batches.supervised, batches.pairs):
        for sequence in _lists(make(_rows(*rows), with_bos, 99).batch):
            assert sequence[0] == BOS
            assert sequence.count(BOS) == 1
    assert batches.prompts(_rows(*rows), with_bos, 99, "error").tokens[0].tolist() == [BOS, *_ids(with_bos, PROMPT)]


def test_pairs_are_chosen_then_rejected(tokenizer):
    rows = [{"prompt": PROMPT, "chosen": GOOD, "rejected": BAD}, {"prompt": PROMPT, "chosen": BAD, "rejected": GOOD}]
    batch = batches.pairs(_rows(*rows), tokenizer, 99).batch
    good, bad = ([*_ids(tokenizer, PROMPT + side), EOS] for side in (GOOD, BAD))
    assert _lists(batch) == [good, bad, bad, good]
    assert batch.labels.tolist() == [[1, 0], [0, 0], [1, 0], [0, 0]]
    assert batch.group.tolist() == [0, 0, 1, 1]
    assert batch.example_id.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("long_side", ["chosen", "rejected"])
def test_a_pair_with_one_long_side_is_dropped_whole_and_counted(tokenizer, long_side):
    short = {"prompt": PROMPT, "chosen": GOOD, "rejected": BAD}
    fits = len(_ids(tokenizer, PROMPT + GOOD)) + 1
    made = batches.pairs(_rows(short, {**short, long_side: GOOD * 2}, short), tokenizer, fits)
    assert made.dropped == 1
    assert made.batch.example_id.tolist() == [0, 0, 2, 2]
    assert made.batch.group.tolist() == [0, 0, 1, 1]
    assert {s[-1] for s in _lists(made.batch)} == {EOS}
    with pytest.raises(DataError, match="longer than max_length; raise it"):
        batches.pairs(_rows(short), tokenizer, fits - 1)


def test_labels_are_zero_or_one_and_sentence_is_text(tokenizer):
    rows = [{"text": "the view", "label": 1}, {"sentence": "the end was ugly", "label": "0"}]
    batch = batches.labelled(_rows(*rows), tokenizer, 99).batch
    assert batch.labels.tolist() == [[1.0], [0.0]]
    assert [s[-1] for s in _lists(batch)] == [EOS, EOS]
    with pytest.raises(DataError, match=r"x\.jsonl:1: label is 2, expected 0 or 1"):
        batches.labelled(_rows({"text": "the view", "label": 2}), tokenizer, 99)


@pytest.mark.parametrize(
    ("too_long", "kept", "ids", "dropped"),
    [("drop", [["the"]], [1], 1), ("truncate_left", [[":"], ["the"]], [0, 1], 0)],
)
def test_long_prompts_are_dropped_or_lose_their_beginning(tokenizer, too_long, kept, ids, dropped):
    made = batches.prompts(_rows({"prompt": PROMPT}, {"prompt": "the"}), tokenizer, 1, too_long)
    assert [tokenizer.convert_ids_to_tokens(t.tolist()) for t in made.tokens] == kept
    assert (made.ids, made.dropped) == (ids, dropped)
    assert made.tokens[0].dtype == np.int32


def test_a_long_prompt_is_an_error_that_names_row_and_remedy(tokenizer):
    with pytest.raises(
        DataError,
        match=r"x.jsonl:2: the prompt has 5 tokens.*evaluate.data.max_prompt_tokens 4.*evaluate.data.too_long to drop",
    ):
        batches.prompts(_rows({"prompt": "the"}, {"prompt": PROMPT}), tokenizer, 4, "error")
    with pytest.raises(DataError, match="all 1 prompts are longer"):
        batches.prompts(_rows({"prompt": PROMPT}), tokenizer, 4, "drop")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": " "}, "x.jsonl:1: column 'prompt' is empty"),
        ({"prompt": 3}, "x.jsonl:1: neither a string nor a list"),
        ({"text": "a"}, r"x.jsonl:1: no column 'prompt' \(it has text\); .* evaluate.data.columns"),
    ],
)
def test_an_unusable_prompt_is_an_error(tokenizer, row, message):
    with pytest.raises(DataError, match=message):
        batches.prompts(_rows(row), tokenizer, 9, "drop")


@pytest.mark.parametrize("make", [batches.language_model, batches.supervised, batches.pairs, batches.labelled])
def test_a_tokenizer_without_eos_is_an_error_with_the_remedy(tokenizer, make):
    tokenizer.eos_token = None
    row = {"text": "a", "prompt": "a", "completion": "b", "chosen": "b", "rejected": "c", "label": 1}
    with pytest.raises(DataError, match=r"no eos_token.*set eos_token in its tokenizer_config\.json"):
        make(_rows(row), tokenizer, 99)


def test_pairs_keep_their_margin(tokenizer):
    row = {"prompt": PROMPT, "chosen": GOOD, "rejected": BAD}
    batch = batches.pairs(_rows(row, {**row, "margin": 2}), tokenizer, 99).batch
    assert batch.labels.tolist() == [[1, 0], [0, 0], [1, 2], [0, 2]]
    with pytest.raises(DataError, match=r"x\.jsonl:1: margin is 'much', expected a number"):
        batches.pairs(_rows({**row, "margin": "much"}), tokenizer, 99)


TALK = [{"role": "user", "content": "the view"}, {"role": "assistant", "content": "was great"}]
WORSE = [{"role": "assistant", "content": "was awful"}]
SIDES = {"prompt": TALK[:1], "completion": TALK[1:], "chosen": TALK[1:], "rejected": WORSE}
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %} :{% endif %} {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %} :{% endif %}"
)


def test_a_conversation_is_cut_where_the_prompt_ends(tokenizer):
    tokenizer.chat_template = TEMPLATE
    by_sides = batches.supervised(_rows(SIDES), tokenizer, 99).batch
    by_messages = batches.supervised(_rows({"messages": TALK}), tokenizer, 99).batch
    assert _lists(by_sides) == _lists(by_messages) == [[*_ids(tokenizer, "the view : was great"), EOS]]
    assert _lists(by_sides, "response_mask") == [[0, 0, 0, 1, 1, 1]]


def test_a_template_that_writes_bos_and_eos_gets_no_second_ones(with_bos):
    with_bos.chat_template = "<bos>" + TEMPLATE.replace(" {{ m.content }}", " {{ m.content }} <eos>\n")
    whole = [BOS, *_ids(with_bos, "the view <eos> : was great"), EOS]
    for make in (batches.supervised, batches.pairs):
        assert _lists(make(_rows(SIDES), with_bos, 99).batch)[0] == whole
    assert batches.prompts(_rows(SIDES), with_bos, 99, "error").tokens[0].tolist() == whole[:5]


def test_a_template_that_opens_generation_otherwise_is_refused(tokenizer):
    tokenizer.chat_template = TEMPLATE.replace("prompt %} :", "prompt %} : mixed")
    for make in (batches.supervised, batches.pairs):
        with pytest.raises(DataError, match=r"x.jsonl:1: the chat template does not begin .*: mixed'\); give both as"):
            make(_rows(SIDES), tokenizer, 99)


@pytest.mark.parametrize("end", ["", " <eos>\n"])
def test_every_turn_of_the_assistant_is_learnt(tokenizer, end):
    """What it says and the end token; whether or not the template writes one."""
    tokenizer.chat_template = TEMPLATE.replace(
        " {{ m.content }}", " {{ m.content }}{% if m.role == 'assistant' %}" + end + "{% endif %}"
    )
    talk = [*TALK, {"role": "user", "content": "the staff"}, {"role": "assistant", "content": "was awful"}]
    batch = batches.supervised(_rows({"messages": talk}), tokenizer, 99).batch
    whole = [*_ids(tokenizer, "the view : was great"), EOS, *_ids(tokenizer, "the staff : was awful"), EOS]
    assert _lists(batch) == [whole]
    assert _lists(batch, "response_mask") == [[0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]]


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer):
    tokenizer.chat_template = "{{ messages|length }}" + TEMPLATE
    talk = [*TALK, {"role": "user", "content": "the staff"}, {"role": "assistant", "content": "was awful"}]
    with pytest.raises(DataError, match=r"x.jsonl:1"):
        batches.supervised(_rows({"messages": talk}), tokenizer, 99)


@pytest.mark.parametrize("messages", ["a talk", TALK[:1]])
def test_messages_are_a_list_with_an_answer(tokenizer, messages):
    with pytest.raises(DataError, match=r"x\.jsonl:1: column 'messages' is no list of messages that ends"):
        batches.supervised(_rows({"messages": messages}), tokenizer, 99)


def test_a_pair_with_equal_sides_is_refused(tokenizer):
    row = {"prompt": "the view", "chosen": " was great", "rejected": " was great"}
    with pytest.raises(DataError, match=r"x:3: chosen and rejected are the same"):
        batches.pairs(Rows([row], "x", [3]), tokenizer, 16)


def test_scores_are_numbers_of_texts_or_answers(tokenizer):
    rows = _rows({"text": "the view was", "score": 0.5}, {"prompt": "the view", "completion": " was great", "score": 2})
    batch = batches.scored(rows, tokenizer, 16).batch
    assert _lists(batch) == [[*_ids(tokenizer, "the view was"), EOS], [*_ids(tokenizer, "the view was great"), EOS]]
    assert batch.labels.tolist() == [[0.5], [2.0]]
    with pytest.raises(DataError, match=r"score is 'high', expected a number"):
        batches.scored(_rows({"text": "a", "score": "high"}), tokenizer, 16)


def test_a_step_is_judged_at_the_end_of_its_separator(tokenizer):
    rows = _rows({"prompt": "the view :", "completions": ["was great", "was"], "labels": [True, False]})
    batch = batches.stepwise(rows, tokenizer, 16, " .").batch
    assert tokenizer.decode(batch.tokens) == "the view : was great . was ."
    assert batch.response_mask.tolist() == [0, 0, 0, 0, 0, 1, 0, 1]
    assert batch.targets.tolist() == [0, 0, 0, 0, 0, 1, 0, 0]
    for labels, says in (
        ([True], "2 completions and 1 labels"),
        ([True, "no"], "expected true or false for each step"),
    ):
        wrong = _rows({"prompt": "the view :", "completions": ["was great", "was"], "labels": labels})
        with pytest.raises(DataError, match=says):
            batches.stepwise(wrong, tokenizer, 16, " .")
