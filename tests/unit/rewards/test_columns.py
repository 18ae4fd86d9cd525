"""Which columns the terms of a reward name."""

from rlhf_ray.config import ClassifierReward, FunctionReward, ModelReward, RuleReward
from rlhf_ray.rewards.columns import columns_by_name


def test_each_kind_of_term_names_its_columns(tmp_path):
    file = tmp_path / "f.py"
    file.write_text(
        "import no_such_module\n\nasync def f(prompts, completions, topic, *, level=1, **columns):\n    ...\n"
    )
    assert columns_by_name([FunctionReward(name="f", path=f"{file}:f")]) >= {"prompt", "topic", "level"}
    assert columns_by_name([RuleReward(name="r", rule="exact_answer")]) == {"prompt", "answer"}
    assert columns_by_name([RuleReward(name="r", rule="length"), ModelReward(name="m", path="m")]) == {"prompt"}
    assert columns_by_name([ClassifierReward(name="c", path="c", column="tone")]) == {"prompt", "tone"}
    assert columns_by_name([ClassifierReward(name="c", path="c", label="good")]) == {"prompt"}
    assert columns_by_name([FunctionReward(name="f", path=f"{tmp_path}/missing.py:f")]) == {"prompt"}
