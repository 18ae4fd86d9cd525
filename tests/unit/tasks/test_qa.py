"""Spans of contexts: windows, the loss against each sequence alone, the answers of all windows."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from rlhf_ray.config import QAJob
from rlhf_ray.data.examples import DataError
from rlhf_ray.tasks.qa import SpanObjective, prepare, windows
from rlhf_ray.tasks.registry import task_kind
from tests.unit.tasks.helpers import CPU, alone, head, job, ragged, rows, wordpiece

CONTEXT = "in may ann lee wrote the book"


def question(**changes):
    return {
        "question": "who wrote it ?",
        "context": CONTEXT,
        "answers": {"text": ["ann lee"], "answer_start": [7]},
        **changes,
    }


@pytest.mark.parametrize("tokenizer", [wordpiece(), None])
def test_an_answer_is_found_in_every_window_that_holds_it(tokenizer):
    if tokenizer is None:  # one that adds nothing itself, with the words of the context
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(wordpiece().backend_tokenizer.to_str()),
            eos_token="[SEP]",
            unk_token="[UNK]",
        )
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1")
    batch = prepare(rows(question()), tokenizer, 12, 2).batch
    characters = [window.characters for window in windows(rows(question()), 0, tokenizer, 12, 2)]
    assert len(batch) > 1
    found = []
    for tokens, (start, end), places in zip(batch.sequences(), batch.labels.astype(int), characters, strict=True):
        assert len(tokens) <= 12
        if end:
            found.append(CONTEXT[places[start][0] : places[end][1]])
            assert tokenizer.decode(tokens[start : end + 1]) == "ann lee"
    assert found
    assert set(found) == {"ann lee"}
    assert set(batch.example_id.tolist()) == {0}
    covered = {int(c) for places in characters for a, b in places if a >= 0 for c in range(a, b)}
    assert covered == {i for i, c in enumerate(CONTEXT) if c != " "}


def test_the_loss_of_a_span_is_over_its_context_and_its_prediction_the_best_pair():
    marks = [np.r_[np.zeros(k), np.ones(n - k - 1), 0] for n, k in ((5, 2), (9, 3), (3, 1))]
    batch = ragged(response_mask=marks, labels=np.array([[2.0, 3.0], [0.0, 0.0], [1.0, 1.0]]))
    plain, wrapped = head("span")
    types = [(torch.arange(n)[None] >= k).long() for n, k in ((5, 2), (9, 3), (3, 1))]
    objective, naive, best = SpanObjective(max_answer_tokens=2), 0.0, []
    for out, m, (start, end) in zip(
        alone(plain, batch, token_type_ids=types), marks, batch.labels.astype(int), strict=True
    ):
        allowed = m.astype(bool) | (np.arange(len(m)) == 0)
        sides = [np.where(allowed, x[0].numpy(), -np.inf) for x in (out.start_logits, out.end_logits)]
        sides = [s - np.log(np.exp(s).sum()) for s in sides]
        naive -= (sides[0][start] + sides[1][end]) / 2
        pairs = {
            (i, j): sides[0][i] + sides[1][j] for i in np.flatnonzero(m) for j in (i, i + 1) if j < len(m) and m[j]
        }
        top = max(pairs, key=pairs.get)
        best.append([*top, pairs[top] - sides[0][0] - sides[1][0]])
    assert float(objective.loss(wrapped, batch, CPU)[0].detach()) == pytest.approx(naive, rel=1e-4)
    with torch.no_grad():
        np.testing.assert_allclose(objective.predict(wrapped, batch, CPU), best, atol=1e-4)


def test_answers_are_the_best_span_of_all_windows_or_none():
    held = rows(question(), question(answers={"text": [], "answer_start": []}))
    qa = job(QAJob, stride=2)
    made = task_kind(qa).build(qa.model_copy(update={"max_length": 12}), held, held, wordpiece())
    spans = []
    for which, (start, end) in zip(made.data.heldout.example_id, made.data.heldout.labels.astype(int), strict=True):
        spans.append(np.array([start, end, 1.0]) if end and not which else np.array([7, 7, -1.0]))
    found = made.judge(spans)
    assert (found["exact_match"], found["f1"]) == (1.0, 1.0)
    wrong = made.judge([np.array([7, 7, 1.0])] * len(spans))
    assert wrong["exact_match"] == 0.0


@pytest.mark.parametrize(
    ("answers", "max_length", "says"),
    [
        ({"text": ["bob"], "answer_start": [7]}, 32, "is not at character 7"),
        ("ann", 32, "expected {text"),
        ({"text": ["ann lee"], "answer_start": [7]}, 8, "leaves 1 of max_length"),
    ],
)
def test_questions_that_cannot_be_learnt(answers, max_length, says):
    with pytest.raises(DataError, match=says):
        prepare(rows(question(answers=answers)), wordpiece(), max_length, 2)
