"""Sources and targets: end tokens, lengths, and how held-out translations are judged."""

import numpy as np
import pytest

from rlhf_ray.config import Seq2SeqJob
from rlhf_ray.data.encode import side_ids
from rlhf_ray.data.examples import DataError
from rlhf_ray.data.prompts import encode_prompts
from rlhf_ray.tasks.seq2seq import SEQ2SEQ, prepare
from rlhf_ray.toy import world as toy
from tests.helpers import T5
from tests.unit.tasks.helpers import rows


def test_both_sides_get_an_end_token_and_the_loss_is_on_the_target():
    word = toy.tokenizer()
    for names in (("source", "target"), ("prompt", "completion")):
        given = [
            dict(zip(names, texts, strict=True)) for texts in (("the view", "was great"), ("the the the the", "a"))
        ]
        made = prepare(rows(*given), word, 4)
        assert made.num_dropped == 1
        assert word.decode(made.batch.tokens) == "the view <eos> was great <eos>"
        assert made.batch.response_mask.tolist() == [0, 0, 0, 1, 1, 1]
        assert made.batch.prompt_length.tolist() == [3]
    asked = encode_prompts(rows({"prompt": "the view"}), word, 4, "error", encoder_decoder=True)
    assert word.decode(asked[0]) == "the view <eos>"
    with pytest.raises(DataError, match=r"x\.jsonl:1: no column 'target'"):
        prepare(rows({"source": "the view"}), word, 4)
    with pytest.raises(DataError, match="expected a string"):
        prepare(rows({"prompt": [{"role": "user", "content": "a"}], "completion": "a"}), word, 4)


def test_an_end_token_that_the_tokenizer_adds_is_not_doubled():
    from tokenizers.processors import TemplateProcessing

    word = toy.tokenizer()
    for single, text in (("$A <eos>", "the view <eos>"), ("$A <eos> <bos>", "the view <eos> <bos>")):
        word.backend_tokenizer.post_processor = TemplateProcessing(
            single=single, special_tokens=[(t, word.convert_tokens_to_ids(t)) for t in ("<eos>", "<bos>")]
        )
        assert word.decode(side_ids("the view", word)) == text


def job(**changes):
    values = {"model": {"init": T5, "tokenizer": "toy"}, "data": {"path": "none"}, "num_steps": 1, "max_length": 16}
    return Seq2SeqJob(**{**values, **changes})


def test_held_out_translations_are_judged_against_their_own_references():
    word = toy.tokenizer()
    texts = ("the view was great", "the the the the the the the the the", "its staff was dull", "a film")
    given = rows(*({"source": "a", "target": t} for t in texts))
    held = {"data": {"path": "none"}, "translated": 2}
    made = SEQ2SEQ.build(job(evaluate=held, max_length=6), given, given, word)  # the second is too long
    assert (made.num_judged, made.objective.max_new_tokens, len(made.data.heldout)) == (2, 6, 3)
    right = [np.array(word(t)["input_ids"] + [word.eos_token_id]) for t in (texts[0], texts[2])]
    assert made.judge(right) == pytest.approx({"bleu": 100.0, "chrf": 100.0})
    assert made.judge(right[::-1])["chrf"] < 60
    assert SEQ2SEQ.build(job(evaluate={**held, "translated": 0}), given, given, word).judge is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"learner": {"micro_batch_tokens": 31}}, "less than a source and a target of max_length = 16"),
        ({"evaluate": {"longest": 17}}, "evaluate.longest = 17 is more than max_length = 16"),
    ],
)
def test_sizes_that_do_not_fit(changes, says):
    with pytest.raises(ValueError, match=says):
        job(**changes)
