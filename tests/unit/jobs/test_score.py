"""Scores of texts, and data that are drawn or left out by them."""

import json

import numpy as np
import pytest

from rlhf_ray.config import ConfigError, DataConfig, ModelConfig, ModelReward, PretrainJob, RewardsConfig, parse
from rlhf_ray.data import examples
from rlhf_ray.data.examples import DataError, Rows, load
from rlhf_ray.data.sampler import Sampler
from rlhf_ray.data.stream import Stream
from rlhf_ray.jobs.score import text_table
from rlhf_ray.models.load import create_model
from rlhf_ray.rewards.worker import RewardWorker
from rlhf_ray.tasks.registry import task_kind
from rlhf_ray.toy import world as toy
from tests.helpers import SHARE, TINY


@pytest.fixture
def scored(tmp_path):
    rows = [{"text": f"the view was {w}", "score": s} for w, s in zip("abcdef", (0, 1, 2, -1, 0.5, 3), strict=True)]
    (tmp_path / "s.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    return str(tmp_path / "s.jsonl")


def test_an_epoch_draws_each_example_as_often_as_its_chance_says_rounded():
    chances = np.random.default_rng(0).exponential(size=300)
    sampler, expected = Sampler(300, seed=1, chances=chances), 300 * chances / chances.sum()
    for epoch in range(3):
        count = np.bincount(sampler.indices(300 * epoch, 300), minlength=300)
        assert (np.abs(count - expected) < 1).all()
    total = np.bincount(sampler.indices(0, 60000), minlength=300) / 200
    assert np.abs(total - expected).max() < 0.15  # what rounding leaves evens out over epochs
    assert sorted(Sampler(50, 1, chances=np.full(50, 7.0)).indices(0, 50)) == list(range(50))


def test_a_weighed_sampler_goes_on_from_any_position_as_it_would_have():
    chances = np.random.default_rng(0).exponential(size=40)
    indices = Sampler(40, seed=1, chances=chances).indices(0, 200)
    assert Sampler(40, seed=1, chances=chances).indices(33, 90).tolist() == indices[33:123].tolist()


@pytest.mark.parametrize("stream", [False, True])
def test_texts_are_drawn_by_the_exponential_of_their_score(scored, tmp_path, stream):
    data = {"path": scored, "stream": stream, "sampling": {"by": "score", "temperature": 0.5}}
    job = PretrainJob.model_validate({"model": {"init": TINY, "tokenizer": "toy"}, "data": data, "num_steps": 1})
    rows = Stream(job.data, "data", tmp_path) if stream else load(job.data, "data")
    task = task_kind(job).build(job, rows, None, toy.tokenizer())
    share = np.bincount(task.sampler(0).indices(0, 6000), minlength=6) / 6000
    weight = np.exp(np.array([0, 1, 2, -1, 0.5, 3]) / 0.5)
    assert share == pytest.approx(weight / weight.sum(), abs=0.006)


def test_a_part_of_a_mixture_is_drawn_by_its_own_scores(scored):
    mix = [{"path": "toy:reviews/text", "size": 10}, {"path": scored, "sampling": {"by": "score"}, "weight": 2}]
    rows = load(DataConfig(mix=mix), "data")
    drawn = rows.shares.sampler(np.arange(16), 0).indices(0, 9000)
    count = np.bincount(drawn, minlength=16)
    assert count[:10].tolist() == pytest.approx([300] * 10, abs=1)
    weight = np.exp([0, 1, 2, -1, 0.5, 3])
    assert count[10:] / 6000 == pytest.approx(weight / weight.sum(), abs=0.005)


def test_rows_below_a_bar_are_left_out_and_the_others_keep_their_places(scored, notices):
    rows = load(DataConfig(path=scored, above={"score": 0.5}), "data")
    assert [r["score"] for r in rows] == [1, 2, 3]
    assert rows.place(2).endswith("s.jsonl:11")
    assert "data: 3 of 6 rows have score above 0.5, the others are left out" in notices
    with pytest.raises(DataError, match=r"none of 6 rows has score above 9; lower data.above"):
        load(DataConfig(path=scored, above={"score": 9}), "data")


@pytest.mark.parametrize("section", [{"above": {"score": 0}}, {"sampling": {"by": "score"}}])
def test_what_is_no_number_is_named_with_its_place(tmp_path, section):
    (tmp_path / "s.jsonl").write_text('{"text": "a", "score": 1}\n{"text": "b", "score": "high"}\n')
    with pytest.raises(DataError, match=r"s.jsonl:2: score is 'high', expected a number"):
        load(DataConfig(path=str(tmp_path / "s.jsonl"), **section), "data")
    (tmp_path / "s.jsonl").write_text('{"text": "a", "quality": 1}')
    with pytest.raises(DataError, match=r"s.jsonl:1: no column 'score' \(it has text, quality\)"):
        load(DataConfig(path=str(tmp_path / "s.jsonl"), **section), "data")


def test_terms_judge_texts_that_no_policy_wrote(tmp_path):
    folder = create_model(ModelConfig(init=TINY, tokenizer="toy"), str(tmp_path), toy.tokenizer(), 3, "scalar")
    terms = [SHARE, ModelReward(name="model", path=folder)]
    worker = RewardWorker(RewardsConfig(terms=terms), None)
    rows = Rows([{"text": "the view was great"}, {"text": "awful"}], "x")
    scores = worker.judge(text_table(rows))
    assert scores[:, 0].tolist() == [0.75, 0.0]
    alone = worker.judge(text_table(Rows(rows[1:], "x")))
    assert alone[0, 1] == pytest.approx(scores[1, 1], abs=1e-5)
    assert scores[0, 1] != pytest.approx(scores[1, 1], abs=1e-5)
    split = Rows([{"prompt": "the view", "completion": " was great"}], "x")  # a model reads both, a rule the completion
    both = worker.judge(text_table(split))[0]
    assert both.tolist() == [1.0, pytest.approx(scores[0, 1], abs=1e-5)]
    assert worker.judge(text_table(rows).slice(0, 0)).shape == (0, 2)


def test_texts_that_cannot_be_judged_are_bad_input():
    with pytest.raises(DataError, match=r"x, row 1: no column 'text' \(it has review\)"):
        text_table(Rows([{"review": "a"}], "x"))
    with pytest.raises(DataError, match="x, row 1: no column 'prompt'"):
        text_table(Rows([{"completion": "a"}], "x"))
    with pytest.raises(DataError, match="x, row 1: column 'text' is empty"):
        text_table(Rows([{"text": ""}], "x"))


def test_a_process_reward_scores_no_texts():
    term = {"name": "steps", "type": "model", "path": "m", "steps": "."}
    with pytest.raises(ConfigError, match="'steps' rewards the steps of an answer, but a text has one score"):
        parse({"job": "score", "data": {"path": "a.jsonl"}, "rewards": {"terms": [term]}}, "job")


def test_blocks_without_a_kept_row_are_left_out(scored, monkeypatch):
    monkeypatch.setattr(examples, "BLOCK", 1)
    data = DataConfig(path=scored, above={"score": 1})
    assert [len(b) for b in examples.blocks(data, "data")] == [1, 1]
