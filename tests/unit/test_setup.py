"""What is decided before a run's first step."""

import json
from pathlib import Path

from rlhf_ray.config import PromptConfig
from rlhf_ray.config.rewards import FunctionReward
from rlhf_ray.data import toy
from rlhf_ray.driver.rl_setup import load_prompts, local


def test_dropped_prompts_are_reported_and_rows_keep_their_columns(tmp_path, capsys):
    rows = [{"prompt": "the view was great"}, {"prompt": "the view", "answer": "7"}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = PromptConfig(path=str(tmp_path / "x.jsonl"), max_prompt_tokens=2, too_long="drop")
    prompts = load_prompts(config, toy.tokenizer(), 128, 8, "evaluate.data")
    said = "evaluate.data: 1 of 2 prompts are longer than evaluate.data.max_prompt_tokens 2, left out\n"
    assert capsys.readouterr().out == said
    assert prompts.rows.to_pylist() == [{"prompt": "the view", "answer": "7", "example_id": 1}]


def test_a_reward_file_is_that_of_the_users_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    term = FunctionReward(name="own", path="rewards/f.py:f")
    assert local(term).path == f"{Path.cwd()}/rewards/f.py:f"
