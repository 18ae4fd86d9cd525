"""Encoders and task heads: what is masked and predicted, which token an answer is, losses against naive ones."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, PreTrainedTokenizerFast

from rlhf_ray.config import BadInput, ClassifyJob, ModelConfig, PretrainJob, QAJob, TagJob
from rlhf_ray.data import tasks as data
from rlhf_ray.data.examples import DataError, Rows
from rlhf_ray.data.sampler import balanced
from rlhf_ray.models import load
from rlhf_ray.quality import classes
from rlhf_ray.tasks import build as tasks
from rlhf_ray.tasks.classify import ClassObjective
from rlhf_ray.tasks.masked import TokenObjective
from rlhf_ray.tasks.qa import SpanObjective
from rlhf_ray.toy import world as toy
from rlhf_ray.train import roles

BERT = {
    "model_type": "bert", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
CPU = torch.device("cpu")
WORDS = """[PAD] [UNK] [CLS] [SEP] [MASK]
who wrote it ? ann lee wrote the book in may un ##like ##ly"""


def wordpiece():
    """A tokenizer as BERT's, [CLS] and [SEP] included."""
    inner = Tokenizer(models.WordPiece({w: i for i, w in enumerate(dict.fromkeys(WORDS.split()))}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", inner.token_to_id("[CLS]")), ("[SEP]", inner.token_to_id("[SEP]"))],
    )  # fmt: skip
    names = {n: f"[{n[:-6].upper()}]" for n in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def rows(*examples, option="data"):
    return Rows(examples, "x.jsonl", range(1, len(examples) + 1), option)


# data -----------------------------------------------------------------------------------------------------------------


def test_a_sequence_has_the_tokenizers_special_tokens_or_bos_and_eos():
    ours = data.encode(toy.tokenizer(), "the view was great")
    assert toy.tokenizer().decode(ours.ids) == "<bos> the view was great <eos>"
    assert ours.words == [-1, 0, 1, 2, 3, -1]
    pair = data.encode(toy.tokenizer(), "the view", "was great")
    assert toy.tokenizer().decode(pair.ids) == "<bos> the view <eos> was great <eos>"
    assert pair.second == 4
    theirs = data.encode(wordpiece(), "who wrote", "ann lee")
    assert wordpiece().decode(theirs.ids) == "[CLS] who wrote [SEP] ann lee [SEP]"
    assert (theirs.second, theirs.words[0], theirs.words[-1]) == (4, -1, -1)


def test_masks_are_berts():
    text = " ".join(["the view was great"] * 12)
    batch = data.masked_text(rows(*[{"text": text}] * 50), toy.tokenizer(), 64).batch
    size = 70
    seen = data.mask(batch, [1, 2], 0.15, False, 69, size)
    chosen = seen.response_mask.astype(bool)
    free = batch.response_mask == 0
    assert not (chosen & free).any()
    share = chosen.sum() / (~free).sum()
    assert share == pytest.approx(0.15, abs=0.03)
    masked, same = seen.tokens[chosen] == 69, seen.tokens[chosen] == batch.tokens[chosen]
    assert masked.mean() == pytest.approx(0.8, abs=0.05)
    assert same.mean() == pytest.approx(0.1, abs=0.05)
    np.testing.assert_array_equal(seen.tokens[~chosen], batch.tokens[~chosen])
    np.testing.assert_array_equal(seen.targets, batch.tokens)
    again, other = (data.mask(batch, seed, 0.15, False, 69, size) for seed in ([1, 2], [1, 3]))
    np.testing.assert_array_equal(again.tokens, seen.tokens)
    assert (other.tokens != seen.tokens).any()


def test_every_sequence_has_a_mask_and_a_word_is_masked_whole():
    batch = data.masked_text(rows(*[{"text": "unlikely book"}] * 40), wordpiece(), 16).batch
    assert (data.mask(batch, [0], 1e-9, False, 4, 18).response_lengths == 1).all()
    whole = data.mask(batch, [0], 0.4, True, 4, 18)
    for marks, words in zip(whole.sequences("response_mask"), batch.sequences("words"), strict=True):
        for word in {0, 1}:
            assert len(set(marks[words == word].tolist())) == 1
    assert len({tuple(m.tolist()) for m in whole.sequences("response_mask")}) > 1


def test_a_long_text_to_classify_is_cut_and_keeps_its_end_token():
    batch = data.classified(rows({"text": "the view was great", "label": 1}), toy.tokenizer(), 4, ("0", "1"))
    assert toy.tokenizer().decode(batch.tokens) == "<bos> the view <eos>"
    assert batch.labels.tolist() == [[1.0]]


def test_a_tag_is_learnt_at_the_first_token_of_its_word():
    given = rows({"words": ["unlikely", "book"], "tags": ["X", "Y"]})
    batch = data.tagged(given, wordpiece(), 16, ("X", "Y"))
    assert [wordpiece().decode([t]) for t in batch.tokens[batch.response_mask == 1]] == ["un", "book"]
    assert batch.targets[batch.response_mask == 1].tolist() == [0, 1]


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
    made = data.answered(rows(question()), tokenizer, 12, 2)
    assert len(made.batch) > 1
    found = []
    for tokens, (start, end), places in zip(
        made.batch.sequences(), made.batch.labels.astype(int), made.characters, strict=True
    ):
        assert len(tokens) <= 12
        if end:
            found.append(CONTEXT[places[start][0] : places[end][1]])
            assert tokenizer.decode(tokens[start : end + 1]) == "ann lee"
    assert found
    assert set(found) == {"ann lee"}
    assert set(made.batch.example_id.tolist()) == {0}
    covered = {int(c) for places in made.characters for a, b in places if a >= 0 for c in range(a, b)}
    assert covered == {i for i, c in enumerate(CONTEXT) if c != " "}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda t: data.answered(rows(question(answers={"text": ["bob"], "answer_start": [7]})), t, 32, 2),
            "is not at character 7",
        ),
        (lambda t: data.answered(rows(question(answers="ann")), t, 32, 2), "expected {text"),
        (lambda t: data.answered(rows(question()), t, 8, 2), "leaves 1 of max_length"),
        (lambda t: data.classified(rows({"text": "may", "label": "maybe"}), t, 8, ("no", "yes")), "label is 'maybe'"),
        (lambda t: data.labels_of(rows({"text": "may", "label": 1})), "every label is '1'"),
        (lambda t: data.tagged(rows({"words": ["may"], "tags": []}), t, 8, ("X",)), "1 words and 0 tags"),
        (lambda t: data.tagged(rows({"words": ["may"], "tags": ["Z"]}), t, 8, ("X",)), "tag is 'Z'"),
    ],
)
def test_examples_that_cannot_be_used(make, says):
    with pytest.raises(DataError, match=says):
        make(wordpiece())


def test_a_balanced_epoch_has_every_class_equally_often():
    given = np.array([0] * 30 + [1] * 7 + [2] * 3)
    drawn = balanced(given, 3).indices(0, 42)
    assert np.bincount(given[drawn]).tolist() == [14, 14, 14]
    assert len(set(drawn[given[drawn] == 0].tolist())) == 14  # nothing of a frequent class twice
    assert sorted(drawn[given[drawn] == 1].tolist()) == sorted([*range(30, 37)] * 2)  # all of a rare one equally often


# models and objectives ------------------------------------------------------------------------------------------------


def head(kind, labels=(), **more):
    """transformers' model, and the same one wrapped."""
    values = {**BERT, "vocab_size": 40, "pad_token_id": 0, **more, **load._labels(kind, labels)}
    both = []
    for _ in range(2):
        torch.manual_seed(0)
        both.append(load.CLASSES[kind].from_config(AutoConfig.for_model(**values)).eval())
    return both[0], load.finish(kind, both[1], attention="auto")


def ragged(**columns):
    from rlhf_ray.batch import from_sequences

    draw = np.random.default_rng(0)
    sequences = [draw.integers(1, 40, n) for n in (5, 9, 3)]
    return from_sequences(sequences, prompt_length=[2, 3, 1], group=np.arange(3), example_id=np.arange(3), **columns)


def alone(model, batch, **more):
    """Outputs of each sequence by itself."""
    with torch.no_grad():
        return [model(input_ids=torch.tensor(s).long()[None], **{k: v[i] for k, v in more.items()})
                for i, s in enumerate(batch.sequences())]  # fmt: skip


@pytest.mark.parametrize("kind", ["masked", "tags"])
def test_the_loss_of_tokens_is_that_of_each_sequence_alone(kind):
    marks = [np.array([0, 1, 0, 1, 0]), np.array([1] * 9), np.array([0, 0, 1])]
    targets = [np.arange(len(m)) % 3 for m in marks]
    batch = ragged(response_mask=marks, targets=targets)
    plain, wrapped = head(kind, ("a", "b", "c") if kind == "tags" else ())
    objective = TokenObjective(kind)
    naive = 0.0
    for out, m, t in zip(alone(plain, batch), marks, targets, strict=True):
        log_p = out.logits[0].log_softmax(-1)
        naive -= sum(float(log_p[i, t[i]]) for i in range(len(m)) if m[i])
    found, metrics = objective.loss(wrapped, batch, CPU)
    assert float(found.detach()) == pytest.approx(naive, rel=1e-5)
    assert objective.weight(batch) == 12 == float(metrics[f"{kind}/accuracy"][1])
    with torch.no_grad():
        predicted = objective.predict(wrapped, batch, CPU)
    assert [len(p) for p in predicted] == [2, 9, 1]


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_loss_of_classes_is_weighted_and_focal(kind, gamma):
    more = {} if kind == "bert" else {"model_type": "llama", "num_key_value_heads": 1}
    batch = ragged(response_mask=[np.zeros(n) for n in (5, 9, 3)], labels=np.array([[0.0], [2.0], [1.0]]))
    plain, wrapped = head("classes", ("a", "b", "c"), **more)
    weights, naive = (1.0, 2.0, 0.5), 0.0
    outs = alone(plain, batch)
    for out, label in zip(outs, (0, 2, 1), strict=True):
        p = float(out.logits[0].softmax(-1)[label])
        naive -= weights[label] * (1 - p) ** gamma * np.log(p)
    objective = ClassObjective(weights, gamma)
    assert float(objective.loss(wrapped, batch, CPU)[0].detach()) == pytest.approx(naive, rel=1e-4)
    assert objective.weight(batch) == 3.5
    with torch.no_grad():
        found = objective.predict(wrapped, batch, CPU)
    np.testing.assert_allclose(found, [out.logits[0].softmax(-1).numpy() for out in outs], atol=1e-5)


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


def test_class_weights_are_those_of_their_papers():
    counts = np.array([90, 10])
    assert classes.weights(counts, "none", 0.9) == [1.0, 1.0]
    balanced = classes.weights(counts, "balanced", 0.9)
    assert balanced == pytest.approx([100 / 180, 5.0])
    effective = classes.weights(counts, "effective", 0.99)
    raw = [(1 - 0.99) / (1 - 0.99**n) for n in counts]
    assert effective[1] / effective[0] == pytest.approx(raw[1] / raw[0])
    assert (np.array(effective) * counts).sum() == pytest.approx(100)


# tasks ----------------------------------------------------------------------------------------------------------------


def job(cls, **more):
    return cls(model={"init": BERT, "tokenizer": "toy"}, data={"path": "none"}, num_steps=1, max_length=16, **more)


def test_a_class_without_an_example_is_refused():
    given = rows({"text": "may", "label": "a"}, {"text": "book", "label": "b"})
    classify = job(ClassifyJob, labels=["a", "b", "c"])
    with pytest.raises(BadInput, match="no example of class c"):
        tasks.build(classify, tasks.labels(classify, given), wordpiece(), given, None)


def test_labels_come_from_the_data_where_none_are_given():
    given = rows({"text": "may", "label": 1}, {"text": "book", "label": 0})
    assert tasks.labels(job(ClassifyJob), given) == ("0", "1")
    assert tasks.labels(job(TagJob), rows({"words": ["may"], "tags": ["Y", "X"]})) == ("X", "Y")


def test_answers_are_the_best_span_of_all_windows_or_none():
    held = rows(question(), question(answers={"text": [], "answer_start": []}))
    qa = job(QAJob, stride=2)
    made = tasks.build(qa.model_copy(update={"max_length": 12}), (), wordpiece(), held, held)
    spans = []
    for which, (start, end) in zip(made.heldout.example_id, made.heldout.labels.astype(int), strict=True):
        spans.append(np.array([start, end, 1.0]) if end and not which else np.array([7, 7, -1.0]))
    found = made.judge(spans)
    assert (found["exact_match"], found["f1"]) == (1.0, 1.0)
    wrong = made.judge([np.array([7, 7, 1.0])] * len(spans))
    assert wrong["exact_match"] == 0.0


def test_a_random_masked_model_gets_a_mask_token(tmp_path):
    model, tokenizer = roles.prepare(ModelConfig(init=BERT, tokenizer="toy"), tmp_path, 0, "masked")
    assert tokenizer.mask_token == "<mask>"
    values = json.loads((tmp_path / "init" / "config.json").read_text())
    assert values["vocab_size"] == len(tokenizer) == len(toy.tokenizer()) + 1
    assert values["architectures"] == ["BertForMaskedLM"]
    pretrain = job(PretrainJob, objective="masked")
    given = rows({"text": "the view was great"})
    made = tasks.build(pretrain, (), tokenizer, given, None)
    seen = made.view(made.train, [0, 0])
    assert seen.response_mask.sum() >= 1
    assert str(model.path).endswith("init")
