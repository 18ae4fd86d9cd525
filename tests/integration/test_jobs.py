"""Every job file runs two steps. The models are tiny, the data are synthetic; all else is as the file has it."""

import json

import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load_file
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from rlhf_ray.run.reader import read_metrics
from rlhf_ray.toy import world as toy
from tests.helpers import JOBS, T5, TINY, run_job, undescribed_metrics

pytestmark = [pytest.mark.integration, pytest.mark.timeout(2000)]

SHARED = ("reward", "sft", "classify")  # models that other stages read, so they come first
LEARNING = (
    "back_translation", "cispo", "classification", "dapo", "dr_grpo", "generated_classes", "generation", "gsm8k", "gspo",
    "hacked", "qa", "question_answering", "quickstart", "reinforce", "reinforce_plus_plus", "reinforce_plus_plus_baseline",
    "remax", "reviews", "score", "stories_generation", "stories_grpo", "stories_ppo", "stories_reward", "tag",
    "translation", "tune",
)  # fmt: skip
# similar to others, or run by CI in another way: `make test-learning` runs them, so that CI stays short
CI = tuple(name for name in sorted(JOBS) if name not in LEARNING)
REWARD = """
def reward(prompts, completions, **columns):
    return [float(len(completion.split())) for completion in completions]
"""
TASKS = {
    "pretrain": "toy:reviews/text", "sft": "toy:reviews/sft", "ppo": "toy:reviews/prompts",
    "classify": "toy:reviews/labels", "tag": "toy:reviews/tags", "qa": "toy:reviews/questions",
    "seq2seq": "toy:translation",
}  # fmt: skip
NEED_ANSWERS = ("right_class", "chrf", "token_f1", "exact_answer")  # rules that read a column answer
NO_STEPS = ("evaluate", "sample", "score", "tokenizer")
BERT = {key: value for key, value in TINY.items() if key != "num_key_value_heads"} | {"model_type": "bert"}
QWEN = {**TINY, "model_type": "qwen2", "max_position_embeddings": 512}
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SUMS = [
    {
        "question": f"Ann has {n} hens and buys {n}. How many?",
        "answer": f"{n} + {n} = <<{n}+{n}={2 * n}>>\n#### {2 * n}",
    }
    for n in range(8)
]


def shrink(job, folder):
    """The job with a tiny model, synthetic data, and two steps of small batches."""
    kind = job["job"]
    if kind in ("evaluate", "sample"):
        return shrink_answers(job, folder)
    if kind == "score":
        return {**job, "data": {"path": "toy:reviews/text", "size": 50}}
    if kind == "tokenizer":
        return {**job, "data": {"path": "toy:reviews/text", "size": 50}, "vocab_size": 300}
    encoder = kind in ("classify", "tag", "qa") or job.get("objective") == "masked"
    model = {"init": BERT if encoder else T5 if kind == "seq2seq" else TINY, "tokenizer": "toy"}
    job = {**job, "num_steps": 2, "model": {**job["model"], **model, "path": None, "dtype": "float32"}}
    return shrink_rl(job, folder) if kind == "ppo" else shrink_supervised(job, folder)


def shrink_supervised(job, folder):
    """A supervised job with four examples a step, evaluated after each."""
    kind = job["job"]
    from_file = job.get("objective") == "labelled" or kind == "ilql"
    path = str(folder / "labelled.jsonl") if from_file else TASKS.get(kind, "toy:reviews/pairs")
    data = {
        "path": path,
        "size": 6 if kind == "reward" and not from_file else 32,
    }  # of 6 pairs a batch spans two epochs
    heldout = data if from_file else {**data, "split": "heldout"}
    evaluate = {**job.get("evaluate", {}), "every": 1, "data": heldout}
    return {**job, "data": data, "batch_size": 4, "max_length": 64, "evaluate": evaluate} | (
        {"stride": 8} if kind == "qa" else {}
    )


def shrink_rl(job, folder):
    """An RL job with four prompts a step and groups of two."""
    terms, algorithm = job["rewards"]["terms"], job["algorithm"]
    with_answers = any(term.get("rule") in NEED_ANSWERS for term in terms)
    path = "toy:arithmetic/prompts" if with_answers else TASKS["ppo"]
    rollout = {"prompts_per_step": 4, "chunk_prompts": 2, "max_new_tokens": 8, "engine": {"dtype": "float32"}}
    return {
        **job,
        "data": {"path": path, "size": 32, "max_prompt_tokens": 32},
        "evaluate": {},
        "rollout": {**job["rollout"], **rollout},
        "rewards": {"terms": [local_term(term, folder) for term in terms]},
        "algorithm": algorithm | ({"group_size": 2} if "group_size" in algorithm else {}),
    }


def shrink_answers(job, folder):
    """Three answers to each of twelve sums; an evaluation is against another model."""
    job = {
        **job,
        "model": {"init": TINY, "tokenizer": "toy", "path": None},
        "data": {"path": "toy:arithmetic/prompts", "size": 12, "max_prompt_tokens": 32},
        "rollout": {"max_new_tokens": 4, "chunk_prompts": 4, "engine": {"dtype": "float32"}},
        "rewards": {"terms": [local_term(term, folder) for term in job["rewards"]["terms"]]},
        "samples": 3,
    }
    if job["job"] == "sample":
        return {**job, "above": None}  # a random model's answers are below any bar
    measures = [*job.get("measures", []), "bleu", "chrf", "classes"]
    against = {"against": "stage:sft", "groups": ["answer"], "measures": measures, "greedy": False, "pass_at": [1, 2]}
    return job | against


def local_term(term, folder):
    """The reward term with a path that exists here."""
    paths = {
        "model": "stage:reward", "likelihood": "stage:sft", "classifier": "stage:classify",
        "function": f"{folder}/reward.py:reward",
    }  # fmt: skip
    term = {**term, "label": "good"} if term["type"] == "classifier" else term  # sums have no label
    return {**term, "path": paths[term["type"]]} if term["type"] in paths else term


def stages_of(folder, names):
    """The stages of a pipeline from these job files; a file that is a pipeline gives all of its stages."""
    (folder / "reward.py").write_text(REWARD)
    examples = [
        {
            "text": f"the staff was {w}",
            "prompt": "the staff",
            "completion": f" was {w}",
            "label": label,
            "reward": label,
        }
        for w, label in (("great", 1), ("awful", 0))
    ] * 16
    (folder / "labelled.jsonl").write_text("\n".join(map(json.dumps, examples)))
    stages = {}
    for name in names:
        job = yaml.safe_load(JOBS[name].read_text())
        inner = {f"{name}_{n}": s for n, s in job["stages"].items()} if job["job"] == "pipeline" else {name: job}
        stages |= {n: shrink(s, folder) for n, s in inner.items()}
    for stage in stages.values():
        for section in ("run", "cluster", "tune"):  # belong to the pipeline, or to a search
            stage.pop(section, None)
    return dict(sorted(stages.items(), key=lambda item: (item[0] not in SHARED, item[0])))


def run_pipeline(folder, stages):
    """Runs the stages; returns the pipeline's run directory."""
    file, run = folder / "job.yaml", folder / "run"
    file.write_text(
        yaml.safe_dump({"job": "pipeline", "cluster": {"num_threads": 1}, "stages": stages}, sort_keys=False)
    )
    run_job(file, run, timeout=1800)
    return run


def assert_each_stage_learnt_two_steps(run, stages):
    """Each training has the metrics of two steps and a model; with one update a step its first ratio is 1."""
    for name, stage in stages.items():
        if stage["job"] in NO_STEPS:
            continue
        steps = read_metrics(run / name)
        assert len(steps) == 2, name
        assert not undescribed_metrics(run / name), name
        assert (run / name / "model" / "model.safetensors").is_file(), name
        if stage["job"] == "ppo" and stage["algorithm"]["type"] == "online_dpo":
            assert 0 <= steps[-1]["preference/accuracy"] <= 1
        elif stage["job"] == "ppo" and (name == "ppo" or stage["algorithm"]["type"] != "ppo"):
            assert steps[-1]["policy/ratio_max"] == pytest.approx(1.0, abs=1e-5), name
            assert steps[-1]["kl/update"] < 1e-10, name  # k3 is 0 only if no ratio is below 1 either


def mathematics(job, folder):
    """The GSM8K job with its own questions and chat template, on a model of the same family and rows of that form."""
    file = yaml.safe_load(JOBS["gsm8k"].read_text())
    inner = ByteLevelBPETokenizer()
    inner.train_from_iterator([json.dumps(SUMS)] * 2, vocab_size=300, show_progress=False)
    tokens = {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"], "chat_template": CHAT}
    PreTrainedTokenizerFast(tokenizer_object=inner._tokenizer, **tokens).save_pretrained(folder / "qwen")
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, SUMS)))
    data = {"path": str(folder / "sums.jsonl"), "formats": file["data"]["formats"], "max_prompt_tokens": 256}
    model = {**job["model"], "init": QWEN, "tokenizer": str(folder / "qwen")}
    return {**job, "model": model, "data": data, "evaluate": {**file["evaluate"], "every": 0, "data": data}}


@pytest.mark.learning
def test_the_other_job_files_run_two_steps(tmp_path):
    stages = stages_of(tmp_path, [*SHARED, *LEARNING])
    stages["gsm8k"] = mathematics(stages["gsm8k"], tmp_path)
    run = run_pipeline(tmp_path, stages)
    assert_each_stage_learnt_two_steps(run, stages)
    (answer, *_) = pq.read_table(run / "gsm8k" / "evaluations" / "step-000002.parquet").to_pylist()
    assert json.loads(answer["prompt"])[-1]["content"].startswith(SUMS[0]["question"])
    assert {"part/right", "part/lenient"} <= set(answer)


def with_more_options(stages, folder):
    """The stages with options that no job file sets: LoRA, scores that steer pre-training, KTO, ptx, entropy, pairs."""
    balance = {"rule": "word_balance", "options": {"positive": ["great", "warm"], "negative": ["awful", "cold"]}}
    terms = {"terms": [{"name": "balance", "type": "rule", **balance}]}
    score = {"job": "score", "data": {"path": "toy:reviews/text", "size": 40}, "rewards": terms}
    scored = {"path": "stage:score/scored.jsonl", "stream": True, "sampling": {"by": "score"}}
    judged = {"path": str(folder / "labelled.jsonl")}
    one_update = {"epochs": 1, "num_mini_batches": 1, "ptx_coef": 0.1, "entropy_coef": 0.01}
    grpo, ppo = stages["grpo"], stages["ppo"]
    kept = {"data": {"path": "stage:rejection_sample/kept.jsonl"}, "evaluate": {}}
    pairs = {"data": {"path": "stage:rejection_pairs/kept.jsonl"}, "evaluate": {}}
    stages = stages | {
        "grpo": {**grpo, "model": {**grpo["model"], "lora": {"rank": 2}}},
        "score": score,
        "kto": {**stages["dpo"], "objective": {"type": "kto"}, "data": judged, "evaluate": {"data": judged}},
        "ppo": {
            **ppo,
            "ptx_data": {"path": "toy:reviews/text", "size": 16},
            "algorithm": {**ppo["algorithm"], **one_update},
            "critic": {**ppo["critic"], "warmup_steps": 1},  # with the file's 5 the policy would not learn at all
        },
        "rejection_sft": {**stages["rejection_sft"], **kept},
        "rejection_pairs": {**stages["rejection_sample"], "keep": "pairs"},
        "rejection_dpo": {**stages["dpo"], **pairs},
        "pretrain": {**stages["pretrain"], "data": scored},
    }
    readers = ("rejection_dpo", "rejection_sft", "pretrain")  # of what other stages write
    return dict(sorted(stages.items(), key=lambda item: item[0] in readers))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(run directory, stages) of the job files that CI runs."""
    folder = tmp_path_factory.mktemp("jobs")
    stages = with_more_options(stages_of(folder, CI), folder)
    return run_pipeline(folder, stages), stages


def test_job_files_run_two_steps(finished):
    assert_each_stage_learnt_two_steps(*finished)


def test_an_adapter_is_exported_as_a_plain_model(finished):
    run, _ = finished
    names = [set(load_file(run / name / "model" / "model.safetensors")) for name in ("grpo", "rloo")]
    assert names[0] == names[1]


def test_sampling_keeps_the_best_answer_of_each_prompt(finished):
    lines = (finished[0] / "rejection_sample" / "kept.jsonl").read_text().splitlines()
    assert len(lines) == 12
    assert set(json.loads(lines[0])) == {"prompt", "answer", "completion", "reward"}


def test_scores_are_columns_of_the_dataset(finished):
    lines = (finished[0] / "score" / "scored.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["text"] for row in rows] == [r["text"] for r in toy.generate("reviews/text", "train", 40, 0)]
    assert all(row["score"] == row["score_balance"] for row in rows)
    assert len({row["score"] for row in rows}) > 2


def test_an_evaluation_has_intervals_groups_wins_and_measures(finished):
    results = json.loads((finished[0] / "evaluate" / "evaluation.json").read_text())
    assert (results["prompts"], results["answers"]) == (12, 36)
    assert results["terms"]["f1"]["low"] <= results["terms"]["f1"]["mean"] <= results["terms"]["f1"]["high"]
    assert 0.0 < results["wins"]["f1"]["mean"] < 1.0
    assert sum(results["groups"]["answer"]["f1"]["counts"].values()) == 36
    assert results["pass@2"]["exact_match"]["mean"] >= results["pass@1"]["exact_match"]["mean"]
    assert set(results["measures"]) == {"distinct_1", "distinct_2", "bleu", "chrf", "classes"}
