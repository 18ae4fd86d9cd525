"""A user's function in its killable process, and the checks of what it returns."""

import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from rlhf_ray.config.rewards import FunctionReward, RuleReward
from rlhf_ray.rewards.function import UserFunction
from rlhf_ray.rewards.reward import DROPPED, RewardError, ScorerContext, checked
from tests.unit.rewards.helpers import TALK, score_conversation

ALONE = ScorerContext(tokenizer=None, device="cpu", prints=None)
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

def sometimes(prompts, completions, **columns):
    return [None if c == "other" else float(len(c)) for c in completions]

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


@pytest.fixture
def function(tmp_path):
    """function(name, **term) -> UserFunction of the file above; closed at the end."""
    file, functions = tmp_path / "functions.py", []
    file.write_text(FUNCTIONS)

    def make(name, **term):
        functions.append(
            UserFunction(FunctionReward(name="own", path=f"{file}:{name}", **{"retries": 0, **term}), ALONE)
        )
        return functions[-1]

    yield make
    for function in functions:
        function.close()


@pytest.mark.parametrize(
    ("name", "scores"), [("length", [2.0, 3.0]), ("later", [1.0, 1.0]), ("tensor", [0.0, 1.0]), ("reads", [0.0, 0.0])]
)
def test_a_users_function_scores(function, name, scores):
    values = function(name)(["p", "q"], ["ab", "abc"], [0, 1])
    assert values.dtype == np.float32
    assert values.tolist() == scores


def test_other_columns_reach_it_by_name(function):
    assert function("same_as_answer")(["p", "q"], ["1", "2"], [0, 1], answer=["1", "3"]).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "says"), [("raises", r"KeyError: 'colour' at .*functions\.py:23"), ("dies", r"exit code 7")]
)
def test_what_it_raises_names_the_line_and_a_death_the_exit_code(function, name, says):
    with pytest.raises(RewardError, match=says):
        function(name)(["p"], ["c"], [0])


def test_a_function_that_hangs_is_killed(function):
    hanging = function("hangs", timeout_s=5.0)
    pid, began = hanging.process.pid, time.monotonic()
    hanging.term = hanging.term.model_copy(update={"timeout_s": 0.3})
    with pytest.raises(RewardError, match=r"did not return in 0.3 s and was killed"):
        hanging(["p"], ["c"], [0])
    assert time.monotonic() - began < 10
    assert not psutil.pid_exists(pid)


def test_a_failure_is_tried_again(function):
    assert function("second_time", retries=1)(["p"], ["c"], [0]).tolist() == [2.0]


def test_dropping_a_call_drops_all_its_samples(function):
    assert (function("raises", on_error="drop")(["p", "q"], ["c", "d"], [0, 1]) == DROPPED).all()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1.0], "1 values for 2"),
        ([1.0, "x"], "'x' for example 8"),
        ([1.0, float("nan")], "'nan' for example 8"),
        ([float("inf"), 1.0], "'inf' for example 7"),
        ("no", "str"),
    ],
)
def test_returned_values_are_checked(values, says):
    with pytest.raises(RewardError, match=says):
        checked("own", "file.py:f", values, [7, 8], "fail")


def test_single_values_can_be_dropped():
    assert checked("own", "file.py:f", [1.0, "x", float("nan")], [7, 8, 9], "drop").tolist() == [1.0, DROPPED, DROPPED]


@pytest.mark.parametrize("on_error", ["fail", "drop"])
def test_a_function_returns_none_if_it_does_not_apply(function, on_error):
    scores = function("sometimes", on_error=on_error)(["p", "q"], ["ab", "other"], [0, 1])
    np.testing.assert_array_equal(scores, [2.0, np.nan])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "import re\nimport no_such_module\n",
            r"ModuleNotFoundError: No module named 'no_such_module' at .*broken\.py:2",
        ),
        ("def f(prompts, completions:\n    pass\n", r"SyntaxError: .* at .*broken\.py:1"),
        ("import helper_of_mine\n", r"ZeroDivisionError: .* at .*broken\.py:1"),
        ("def g(): pass\n", r"no function 'f' in .*broken\.py; it has g"),
    ],
)
def test_a_file_that_cannot_be_imported_is_refused_with_its_line(tmp_path, source, message):
    (tmp_path / "helper_of_mine.py").write_text("1 / 0")
    (tmp_path / "broken.py").write_text(source)
    with pytest.raises(RewardError, match=message):
        UserFunction(FunctionReward(name="own", path=f"{tmp_path}/broken.py:f"), ALONE)


def test_a_function_gets_conversations_as_trl_gives_them_and_a_rule_gets_text(tmp_path):
    (tmp_path / "f.py").write_text(f"""if True:
        def f(prompts, completions, completion_ids, **columns):
            assert prompts == [{TALK!r}], prompts
            assert completions == [[{{"role": "assistant", "content": " was warm ."}}]], completions
            assert not columns, columns
            return [len(ids) for ids in completion_ids]
    """)
    function = FunctionReward(name="own", path=f"{tmp_path}/f.py:f", retries=0)
    assert score_conversation(
        [function, RuleReward(name="warm", rule="contains", options={"text": "was warm"})], tmp_path
    ) == [
        4,
        1,
    ]


def test_the_process_of_a_function_imports_nothing_of_the_package():
    file = Path(__file__).parents[3] / "rlhf_ray" / "rewards" / "sandbox_process.py"
    assert "from ." not in file.read_text()


def test_what_a_function_prints_is_in_a_file_and_the_file_stays_small(tmp_path, monkeypatch):
    (tmp_path / "f.py").write_text("""if True:
        import subprocess
        def chatty(prompts, completions, **columns):
            print("scoring", completions[0])
            subprocess.run(["echo", "from a program"])
            return [0.0 for _ in completions]
    """)
    monkeypatch.setattr("rlhf_ray.rewards.function.MAX_PRINTED", 200)
    context = ScorerContext(tokenizer=None, device="cpu", prints=tmp_path / "prints")
    chatty = UserFunction(FunctionReward(name="own", path=f"{tmp_path}/f.py:chatty"), context)
    chatty(["p"], ["first"], [0])
    printed = (tmp_path / "prints" / "own.txt").read_text()
    assert "scoring first" in printed
    assert "from a program" in printed
    for _ in range(20):
        chatty(["p"], ["later"], [0])
    chatty.close()
    printed = (tmp_path / "prints" / "own.txt").read_text()
    assert len(printed) < 400
    assert "the older ones are removed" in printed
