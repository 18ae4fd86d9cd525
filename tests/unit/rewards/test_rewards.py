"""Rules, a user's function in its killable process, reward models by text, and the weighted sum."""

import itertools
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, models, processors
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from rlhf_ray.batch import from_sequences
from rlhf_ray.config import ModelConfig, ModelReward, RewardsConfig
from rlhf_ray.config.rewards import FunctionReward, LikelihoodReward, RuleReward
from rlhf_ray.data import tokenizer as tokenizers
from rlhf_ray.quality import text as quality
from rlhf_ray.rewards.function import UserFunction
from rlhf_ray.rewards.reward import RewardError, checked, combine, scales
from rlhf_ray.rewards.rules import rule
from rlhf_ray.rewards.worker import RewardWorker
from rlhf_ray.toy import world as toy
from tests.helpers import TINY

TALK = [{"role": "user", "content": "the view"}]
FUNCTIONS = """
import asyncio, os, time, sys

def length(prompts, completions, **columns):
    print("noise on stdout")
    return [float(len(c)) for c in completions]

def same_as_answer(prompts, completions, answer, **columns):
    return [float(c == a) for c, a in zip(completions, answer)]

async def later(prompts, completions, **columns):
    await asyncio.sleep(0)
    return [1.0 for _ in completions]

def tensor(prompts, completions, **columns):
    import torch
    return torch.arange(len(completions)).float()

def raises(prompts, completions, **columns):
    raise KeyError("colour")

def hangs(prompts, completions, **columns):
    time.sleep(60)

def dies(prompts, completions, **columns):
    os._exit(7)

def reads(prompts, completions, **columns):
    return [float(len(sys.stdin.read())) for _ in completions]

def second_time(prompts, completions, **columns):
    mark = __file__ + ".mark"
    if not os.path.exists(mark):
        open(mark, "w").close()
        raise RuntimeError("not yet")
    return [2.0 for _ in completions]
"""


@pytest.mark.parametrize(
    ("name", "options", "completion", "score"),
    [
        ("word_share", {"words": ["Warm"]}, "a warm, WARM day", 0.5),
        ("word_balance", {"positive": ["good"], "negative": ["bad"]}, "good good bad", 0.25),
        ("contains", {"text": "Yes"}, "oh yes", 1.0),
        ("length", {"target": 4}, "two words", 0.5),
        ("length", {"target": 4, "unit": "chars"}, "abcdef", 0.5),
        ("regex_match", {"pattern": r"\d+"}, "no number", 0.0),
        ("format", {"pattern": r"<a>.*</a>"}, " <a>x\ny</a> ", 1.0),
        ("coherence", {}, "the Cafe was fresh", 3 / 4),
        ("coherence", {}, "fresh view fresh view", 2 / 3),
        ("coherence", {"n": 1}, "fresh view fresh view", 1 / 2),
        ("coherence", {"ends": ".!"}, "we had no view", 0.0),
        ("coherence", {"ends": ".!"}, "we had no view! ", 1.0),
        ("coherence", {}, " ", 0.0),
        ("prompt_words", {"ignore": ["Review", "of", "the", "we", "had", "no"]}, "a view of a CAFE.", 2 / 3),
        ("prompt_words", {"ignore": ["review", "of", "the", "cafe", "we", "had", "no", "fresh", "view"]}, "", 1.0),
        ("toy_truth", {}, " the staff was lovely . the price was awful .", 0.0),
        ("toy_validity", {}, " the staff was lovely . staff the was .", 0.5),
    ],
)
def test_a_rule_scores(name, options, completion, score):
    assert rule(name, options)(["review of the cafe : we had no fresh view ."], [completion]) == [pytest.approx(score)]


@pytest.mark.parametrize(
    ("completion", "answer", "score"),
    [
        ("so 3 + 4 = 7", "7", 1),
        ("#### 1,234", "1234", 1),
        ("5-3", "3", 1),
        ("it is -2", "2", 0),
        ("none", "1", 0),
        ("7.0", 7, 1),
        ("It costs $18.", "6 x 3 = <<6*3=18>>18 dollars\n#### 18", 1),
        ("9 eggs at $2 each\n#### $18.00 a day", "#### 18", 1),
        ("She makes $1,234,567", "#### 1,234,567", 1),
        ("from 12,50", "1250", 0),
        ("\\boxed{-3}", "#### -3", 1),
        ("18 of 100 %", "#### 18", 0),
        ("#### eighteen", "18", 0),
    ],
)
def test_the_last_number_is_the_answer(completion, answer, score):
    assert rule("exact_answer", {})(["?"], [completion], answer=[answer]) == [score]
    strict = rule("exact_answer", {"strict": True})(["?"], [completion], answer=[answer])
    assert strict == [score * ("####" in completion)]


@pytest.mark.parametrize(
    ("completion", "answer", "recall"),
    [
        ("It was the Norman conquest of England", {"text": ["the Norman conquest"], "answer_start": [0]}, 1.0),
        ("Norman", ["Norman conquest", "conquest of England"], 1 / 2),
        ("cat", "cat cat dog", 1 / 3),
        ("nothing", "the", 1.0),
    ],
)
def test_completeness_is_how_much_of_the_answer_is_there(completion, answer, recall):
    assert rule("token_recall", {})(["?"], [completion], answer=[answer]) == [pytest.approx(recall)]


def test_the_samples_of_a_prompt_share_the_worth_of_their_n_grams():
    """Against a loop over n-grams; and weighted by their number the mean is distinct-n, whatever the order of the rows."""
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(list("abcd"), size)) for size in (7, 1, 5, 9, 6, 5)]
    prompts = ["p", "p", "p", TALK, TALK, "alone"]
    found = rule("diversity", {"n": 2})(prompts, texts)

    def grams(text):
        words = text.split()
        return list(itertools.pairwise(words))

    for i, text in enumerate(texts):
        group = [t for p, t in zip(prompts, texts, strict=True) if p == prompts[i]]
        worth = sum(1 / sum(g in grams(t) for t in group) for g in set(grams(text)))
        assert found[i] == pytest.approx(worth / max(1, len(grams(text))))
    for key in ("p", TALK):
        rows = [i for i, p in enumerate(prompts) if p == key]
        counts = [len(grams(texts[i])) for i in rows]
        mean = sum(found[i] * c for i, c in zip(rows, counts, strict=True)) / sum(counts)
        assert mean == pytest.approx(quality.distinct([texts[i] for i in rows], 2))


def test_a_conversation_is_read_as_its_messages():
    assert rule("coherence", {})([TALK], ["the other view"]) == [pytest.approx(2 / 3)]


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("beauty", {}, "no rule 'beauty'; there are word_share"),
        ("length", {}, "needs target"),
        ("length", {"target": 4, "size": 1}, "does not take size"),
        ("length", {"target": 0}, "mend its options"),
        ("word_share", {"words": "warm"}, "not a list of words"),
        ("regex_match", {"pattern": "("}, "mend its options"),
    ],
)
def test_options_that_cannot_be(name, options, says):
    with pytest.raises(RewardError, match=says):
        rule(name, options)


@pytest.fixture
def function(tmp_path):
    """function(name, **term) -> UserFunction of the file above; closed at the end."""
    file, made = tmp_path / "functions.py", []
    file.write_text(FUNCTIONS)

    def make(name, **term):
        made.append(UserFunction(FunctionReward(name="own", path=f"{file}:{name}", **{"retries": 0, **term})))
        return made[-1]

    yield make
    for found in made:
        found.close()


@pytest.mark.parametrize(
    ("name", "scores"), [("length", [2.0, 3.0]), ("later", [1.0, 1.0]), ("tensor", [0.0, 1.0]), ("reads", [0.0, 0.0])]
)
def test_a_users_function_scores(function, name, scores):
    found = function(name)(["p", "q"], ["ab", "abc"], [0, 1])
    assert found.dtype == np.float32
    assert found.tolist() == scores


def test_other_columns_reach_it_by_name(function):
    assert function("same_as_answer")(["p", "q"], ["1", "2"], [0, 1], answer=["1", "3"]).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "says"), [("raises", r"KeyError: 'colour' at .*functions\.py:20"), ("dies", r"exit code 7")]
)
def test_what_it_raises_names_the_line_and_a_death_the_exit_code(function, name, says):
    with pytest.raises(RewardError, match=says):
        function(name)(["p"], ["c"], [0])


def test_a_function_that_hangs_is_killed(function):
    found = function("hangs", timeout_s=5.0)
    pid, began = found.process.pid, time.monotonic()
    found.term = found.term.model_copy(update={"timeout_s": 0.3})
    with pytest.raises(RewardError, match=r"did not return in 0.3 s and was killed"):
        found(["p"], ["c"], [0])
    assert time.monotonic() - began < 10
    assert not psutil.pid_exists(pid)


def test_a_failure_is_tried_again(function):
    assert function("second_time", retries=1)(["p"], ["c"], [0]).tolist() == [2.0]


def test_dropping_gives_nan_for_the_whole_call(function):
    assert np.isnan(function("raises", on_error="drop")(["p", "q"], ["c", "d"], [0, 1])).all()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1.0], "1 values for 2"),
        ([1.0, None], "'None' for example 8"),
        ([float("inf"), 1.0], "'inf' for example 7"),
        ("no", "str"),
    ],
)
def test_returned_values_are_checked(values, says):
    with pytest.raises(RewardError, match=says):
        checked("own", "file.py:f", values, [7, 8], "fail")


def test_single_values_can_be_dropped():
    assert np.isnan(checked("own", "file.py:f", [1.0, None], [7, 8], "drop")).tolist() == [False, True]


def test_the_reward_is_the_weighted_sum_with_models_standardised():
    terms = [RuleReward(name="a", rule="length", weight=2.0), ModelReward(name="m", path="x", weight=0.5)]
    parts = np.array([[1.0, 10.0], [0.0, 14.0]], np.float32)
    assert combine(parts, RewardsConfig(terms=terms), {"m": (10.0, 2.0)}).tolist() == [2.0, 1.0]


@pytest.mark.parametrize("how", ["mean", "min", "uncertainty"])
def test_an_ensemble_counts_once(how):
    models = [ModelReward(name=name, path=name, weight=3.0) for name in "abc"]
    terms = [models[0], RuleReward(name="r", rule="length", weight=2.0), *models[1:], ModelReward(name="d", path="d")]
    ensemble = {"members": ["c", "a", "b"], "combine": how, "coef": 0.5}
    rewards = RewardsConfig(terms=terms, ensembles=[ensemble])
    parts = np.random.default_rng(0).normal(2, 5, (40, 5)).astype(np.float32)
    statistics = scales(parts[:20], rewards)  # of the first rollouts, kept for those that come
    assert statistics.keys() == set("abcd")
    found = combine(parts, rewards, statistics)
    for row, value in zip(parts, found, strict=True):
        each = [(row[i] - statistics[n][0]) / statistics[n][1] for n, i in (("a", 0), ("b", 2), ("c", 3))]
        mean = sum(each) / 3
        variance = sum((x - mean) ** 2 for x in each) / 3
        one = {"mean": mean, "min": min(each), "uncertainty": mean - 0.5 * variance}[how]
        alone = (row[4] - statistics["d"][0]) / statistics["d"][1]
        assert value == pytest.approx(3.0 * one + 2.0 * row[1] + alone, rel=1e-4, abs=1e-4)
    parts[3, 2] = np.nan
    assert np.flatnonzero(np.isnan(combine(parts, rewards, statistics))).tolist() == [3]


@pytest.mark.parametrize(
    ("members", "changes", "says"),
    [
        (["a", "x"], {}, "'x' is not a term with type: model"),
        (["a", "r"], {}, "'r' is not a term with type: model"),
        (["a", "b"], {"standardise": False}, "'b' is not a term with type: model"),
        (["a", "b"], {"steps": "."}, "'b' is not a term with type: model"),
        (["a", "a"], {}, "'a' is a member twice"),
        (["a", "b"], {"weight": 2.0}, "a, b have different weights"),
    ],
)
def test_an_ensemble_that_is_none(members, changes, says):
    terms = [
        RuleReward(name="r", rule="length"),
        ModelReward(name="a", path="a"),
        ModelReward(name="b", path="b", **changes),
    ]
    with pytest.raises(ValueError, match=says):
        RewardsConfig(terms=terms, ensembles=[{"members": members}])


def make_judge(path, tokenizer):
    """A random reward model with this tokenizer at a path; its config names no pad token."""
    tokenizer.save_pretrained(path)
    settings = {k: v for k, v in TINY.items() if k != "model_type"}
    torch.manual_seed(0)
    LlamaForSequenceClassification(LlamaConfig(vocab_size=len(tokenizer), num_labels=1, **settings)).save_pretrained(
        path
    )
    return str(path)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A random reward model of the toy vocabulary with two more words, so that it must be given text; it has no pad token."""
    tokenizer = toy.tokenizer()
    tokenizer.add_tokens(["[one]", "[two]"])
    tokenizer.pad_token = None
    return make_judge(tmp_path_factory.mktemp("judge"), tokenizer)


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """A random reward model with the policy's tokenizer, context 128."""
    return make_judge(tmp_path_factory.mktemp("twin"), toy.tokenizer())


def worker_of(terms, tmp_path):
    toy.tokenizer().save_pretrained(tmp_path / "policy")
    return RewardWorker(RewardsConfig(terms=terms), str(tmp_path / "policy"))


def scored(terms, tmp_path):
    """(reward_parts, prompts, completions) of two completions by a worker that is plain Python."""
    tokenizer = toy.tokenizer()
    prompts = ["review of the hotel : the staff was warm .", "review of the park : we had a dull view ."]
    completions = ["the price was ugly .", "the end was fresh . the look was stale ."]
    heads, tails = ([tokenizer(t)["input_ids"] for t in texts] for texts in (prompts, completions))
    batch = from_sequences(
        [np.array(h + t + [tokenizer.eos_token_id]) for h, t in zip(heads, tails, strict=True)],
        prompt_length=[len(h) for h in heads],
        example_id=np.array([5, 3]),
    )
    rows = pa.table({"example_id": [3, 5], "prompt": [prompts[1], prompts[0]], "wanted": ["ugly", "ugly"]})
    worker = worker_of(terms, tmp_path)
    worker.check()
    return worker.score(batch, rows, None)["reward_parts"], prompts, completions


@pytest.mark.parametrize("kind", [ModelReward, LikelihoodReward])
def test_bfloat16_scores_are_those_of_float32_but_for_rounding(kind, judge, tmp_path):
    """`auto` is float32 on a CPU, to the bit; bfloat16 differs, by much less than scores differ from each other."""
    path = judge
    if kind is LikelihoodReward:
        make_language(tmp_path / "language", toy.tokenizer())
        path = str(tmp_path / "language")
    names = {"whole": "float32", "half": "bfloat16", "default": "auto"}
    parts, _, _ = scored([kind(name=name, path=path, dtype=dtype) for name, dtype in names.items()], tmp_path)
    whole, half, default = parts.T
    assert (default == whole).all()
    assert (half != whole).any()
    assert np.abs(half - whole).max() < 0.02 * max(1.0, np.abs(whole).max())


def test_a_worker_scores_every_kind_of_term_in_its_order(tmp_path, judge):
    (tmp_path / "f.py").write_text(
        "def f(prompts, completions, wanted, **_):\n    return [float(w in c) for c, w in zip(completions, wanted)]"
    )
    terms = [
        RuleReward(name="words", rule="word_share", options={"words": ["ugly", "fresh"]}),
        FunctionReward(name="wanted", path=f"{tmp_path}/f.py:f"),
        ModelReward(name="taste", path=judge),
    ]
    parts, prompts, completions = scored(terms, tmp_path)
    assert parts[:, 0].tolist() == [pytest.approx(1 / 4), pytest.approx(1 / 8)]
    assert parts[:, 1].tolist() == [1.0, 0.0]
    tokenizer = toy.tokenizer()
    for i, text in enumerate(f"{p} {c}" for p, c in zip(prompts, completions, strict=True)):
        assert parts[i, 2] == pytest.approx(
            logit(judge, [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]), abs=1e-5
        )


def test_a_process_reward_is_the_score_at_each_steps_end(twin, tmp_path):
    """Steps end at 'was' here, and an answer's last token ends one; the prompt's tokens never do."""
    tokenizer = toy.tokenizer()
    term = ModelReward(name="steps", path=twin, steps="was", weight=0.5)
    plain = RuleReward(name="words", rule="word_share", options={"words": ["ugly"]})
    worker = worker_of([term, plain], tmp_path)
    whole = [tokenizer(t)["input_ids"] for t in ("the view was great . the staff was", "the view was ugly")]
    batch = from_sequences(
        whole, prompt_length=[3, 3], response_mask=[[0, 0, 0, *[1] * (len(w) - 3)] for w in whole],
        group=[0, 1], example_id=[0, 1],
    )  # fmt: skip
    found = batch.replace(**worker.score(batch, pa.table({"example_id": [0, 1], "prompt": ["the view was"] * 2})))
    ends = {7: whole[0][:8], 11: whole[1][:4]}
    for place, value in enumerate(found.step_rewards):
        wanted = 0.5 * logit(twin, ends[place]) if place in ends else 0.0
        assert value == pytest.approx(wanted, abs=1e-5), place
    assert found.reward_parts[:, 0].tolist() == pytest.approx([2 * v for v in found.step_rewards[[7, 11]]])
    total = combine(found.reward_parts, RewardsConfig(terms=[term, plain]), {})
    assert total.tolist() == found.reward_parts[:, 1].tolist()  # the steps' rewards come at their steps


def make_language(path, tokenizer):
    """A random causal language model with this tokenizer at a path, and itself."""
    tokenizer.save_pretrained(path)
    settings = {k: v for k, v in TINY.items() if k != "model_type"} | {"initializer_range": 0.3}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **settings)).eval()
    model.save_pretrained(path)
    return model


def mean_log_prob(model, ids, first):
    """Naive: of the tokens from ``first`` on, one at a time."""
    with torch.no_grad():
        found = [
            float(model(torch.tensor([ids[:i]])).logits[0, -1].log_softmax(-1)[ids[i]]) for i in range(first, len(ids))
        ]
    return sum(found) / len(found)


@pytest.mark.parametrize("same", [True, False])
def test_likelihood_is_the_mean_log_prob_of_what_was_sampled(tmp_path, same):
    """The first answer ended and the second was cut; with another tokenizer the same words have other ids."""
    policy, other = toy.tokenizer(), toy.tokenizer()
    if not same:
        words = policy.get_vocab()
        ids = {w: (i if i < 4 else len(words) + 3 - i) for w, i in words.items()}
        other = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel(ids, unk_token="<unk>")),
            eos_token="<eos>", unk_token="<unk>", clean_up_tokenization_spaces=False,
        )  # fmt: skip
        other.backend_tokenizer.pre_tokenizer = policy.backend_tokenizer.pre_tokenizer
    model = make_language(tmp_path / "language", other)
    prompts, answers = ["the view was", "we had a"], [" great . <eos>", " dull view . its"]
    whole = [policy(p + a)["input_ids"] for p, a in zip(prompts, answers, strict=True)]
    batch = from_sequences(whole, prompt_length=[3, 3], truncated=[False, True], example_id=[0, 1])
    worker = worker_of([LikelihoodReward(name="fluent", path=str(tmp_path / "language"))], tmp_path)
    worker.check(128)  # nothing is added where the tokens are the policy's: the whole context may be used
    found = worker.score(batch, pa.table({"example_id": [0, 1], "prompt": prompts}))["reward_parts"][:, 0]
    wanted = [mean_log_prob(model, other(p + a)["input_ids"], 3) for p, a in zip(prompts, answers, strict=True)]
    assert found.tolist() == pytest.approx(wanted, abs=1e-5)
    assert len(set(wanted)) == 2


def test_a_reward_model_has_no_likelihood(judge, tmp_path):
    with pytest.raises(RewardError, match=r"reward 'fluent': .* holds a reward model"):
        worker_of([LikelihoodReward(name="fluent", path=judge)], tmp_path).check()


def test_steps_need_the_policys_tokenizer(judge, tmp_path):
    worker = worker_of([ModelReward(name="steps", path=judge, steps=".")], tmp_path)
    batch = from_sequences([[5, 6]], prompt_length=[1], response_mask=[[0, 1]], group=[0], example_id=[0])
    with pytest.raises(RewardError, match="has another tokenizer"):
        worker.score(batch, pa.table({"example_id": [0], "prompt": ["x"]}))


def logit(judge, ids):
    """What transformers gives for one sequence without padding: the score of its last token."""
    model = LlamaForSequenceClassification.from_pretrained(judge).eval()
    return float(model(torch.tensor([ids])).logits[0, 0].detach())


def talked(terms, tmp_path):
    """reward_parts of 'was warm .' after a conversation, an answer of four tokens."""
    worker = worker_of(terms, tmp_path)
    ids = worker.tokenizer("the view was warm . <eos>")["input_ids"]
    batch = from_sequences([np.array(ids)], prompt_length=[2], example_id=np.array([4]))
    rows = pa.table({"example_id": [4], "prompt": [TALK], "completion": ["mine"], "completion_ids": ["mine"]})
    return worker.score(batch, rows)["reward_parts"][0].tolist()


def test_a_function_gets_conversations_as_trl_gives_them_and_a_rule_gets_text(tmp_path):
    (tmp_path / "f.py").write_text(f"""if True:
        def f(prompts, completions, completion_ids, **columns):
            assert prompts == [{TALK!r}], prompts
            assert completions == [[{{"role": "assistant", "content": " was warm ."}}]], completions
            assert not columns, columns
            return [len(ids) for ids in completion_ids]
    """)
    function = FunctionReward(name="own", path=f"{tmp_path}/f.py:f", retries=0)
    assert talked([function, RuleReward(name="warm", rule="contains", options={"text": "was warm"})], tmp_path) == [
        4,
        1,
    ]


def test_a_foreign_reward_model_reads_a_conversation_with_one_bos(tmp_path):
    tokenizer = toy.tokenizer()
    tokenizer.add_tokens(["[another]"])
    bos = [("<bos>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", None, bos)
    tokenizer.chat_template = "<bos>{% for m in messages %} {{ m.content }}{% endfor %}"
    path = make_judge(tmp_path / "judge", tokenizer)
    ids = tokenizer("<bos> the view was warm . <eos>", add_special_tokens=False)["input_ids"]
    assert talked([ModelReward(name="m", path=path)], tmp_path) == [pytest.approx(logit(path, ids), abs=1e-5)]


def test_a_context_without_room_for_the_end_token_is_refused_before_the_run(tmp_path, twin):
    worker = worker_of([ModelReward(name="m", path=twin)], tmp_path)
    worker.check(127)
    with pytest.raises(RewardError, match=r"reward 'm': a truncated sample .* context of 128; lower .* by 1$"):
        worker.check(128)


@pytest.mark.parametrize("on_error", ["fail", "drop"])
def test_a_sequence_beyond_the_context_is_the_terms_on_error(tmp_path, twin, on_error):
    worker = worker_of([ModelReward(name="m", path=twin, on_error=on_error)], tmp_path)
    batch = from_sequences([np.full(n, 7) for n in (128, 127)], prompt_length=[4, 4], example_id=np.array([0, 1]))
    rows = pa.table({"example_id": [0, 1], "prompt": ["the", "the"]})
    if on_error == "fail":
        with pytest.raises(RewardError, match="example 0 has 129 tokens, more than"):
            worker.score(batch, rows)
    else:
        parts = worker.score(batch, rows)["reward_parts"][:, 0]
        assert np.isnan(parts[0])
        assert parts[1] == pytest.approx(logit(twin, [7] * 127 + [worker.tokenizer.eos_token_id]), abs=1e-5)


def test_without_a_pad_token_the_score_is_read_at_the_end_token(tmp_path, judge):
    parts, prompts, completions = scored([ModelReward(name="m", path=judge)], tmp_path)
    assert tokenizers.load(ModelConfig(path=judge), judge).pad_token_id is None
    tokenizer = toy.tokenizer()
    for i, text in enumerate(f"{p} {c}" for p, c in zip(prompts, completions, strict=True)):
        ids = tokenizer(text)["input_ids"]
        assert parts[i, 0] == pytest.approx(logit(judge, [*ids, tokenizer.eos_token_id]), abs=1e-5)
        assert parts[i, 0] != pytest.approx(logit(judge, ids), abs=1e-5)


def test_a_worker_says_what_a_rule_misses(tmp_path):
    with pytest.raises(RewardError, match="which has prompt, wanted"):
        scored([RuleReward(name="right", rule="exact_answer")], tmp_path)


def test_the_child_does_not_see_the_package_as_its_own_folder():
    child = Path(__file__).parents[3] / "rlhf_ray" / "rewards" / "child.py"
    assert "from ." not in child.read_text()


def test_what_a_function_prints_is_in_a_file_and_the_file_stays_small(tmp_path, monkeypatch):
    (tmp_path / "f.py").write_text("""if True:
        import subprocess
        def chatty(prompts, completions, **columns):
            print("scoring", completions[0])
            subprocess.run(["echo", "from a program"])
            return [0.0 for _ in completions]
    """)
    monkeypatch.setattr("rlhf_ray.rewards.function.MAX_PRINTED", 200)
    own = UserFunction(FunctionReward(name="own", path=f"{tmp_path}/f.py:chatty"), tmp_path / "prints" / "own.txt")
    own(["p"], ["first"], [0])
    printed = (tmp_path / "prints" / "own.txt").read_text()
    assert "scoring first" in printed
    assert "from a program" in printed
    for _ in range(20):
        own(["p"], ["later"], [0])
    own.close()
    printed = (tmp_path / "prints" / "own.txt").read_text()
    assert len(printed) < 400
    assert "the older ones are removed" in printed
