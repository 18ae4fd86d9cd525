"""Every file of jobs/ runs two steps: the models tiny, the data the offline world's, all else as the file has it."""

import json

import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load_file
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from rlhf_ray.run.reader import read_metrics
from rlhf_ray.toy import world as toy
from tests.helpers import JOBS, T5, TINY, undescribed_metrics

pytestmark = pytest.mark.integration

LATER = (
    "back_translation",
    "cispo",
    "classification",
    "dapo",
    "dr_grpo",
    "generated_classes",
    "generation",
    "gsm8k",
    "gspo",
    "hacked",
    "qa",
    "question_answering",
    "quickstart",
    "reinforce",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "remax",
    "reviews",
    "score",
    "stories_generation",
    "stories_grpo",
    "stories_ppo",
    "stories_reward",
    "tag",
    "translation",
    "tune",
)  # much like others, or run by CI itself (quickstart): `make test-learning` runs them, so that CI stays short
FILES = sorted(JOBS)
REWARD = """
def reward(prompts, completions, **columns):
    return [float(len(completion.split())) for completion in completions]
"""
DATA = {
    "pretrain": "toy:reviews/text", "sft": "toy:reviews/sft", "ppo": "toy:reviews/prompts",
    "classify": "toy:reviews/labels", "tag": "toy:reviews/tags", "qa": "toy:reviews/questions",
    "seq2seq": "toy:translation",
}  # fmt: skip
BERT = {k: v for k, v in TINY.items() if k != "num_key_value_heads"} | {"model_type": "bert"}


def tiny(job, folder):
    """The job with two steps of small batches on the offline world."""
    kind = job["job"]
    if kind in ("evaluate", "sample"):
        return asked(job, folder)
    if kind == "score":
        return {**job, "data": {"path": "toy:reviews/text", "size": 50}}
    if kind == "tokenizer":
        return {**job, "data": {"path": "toy:reviews/text", "size": 50}, "vocab_size": 300}
    encoder = kind in ("classify", "tag", "qa") or job.get("objective") == "masked"
    model = {"init": BERT if encoder else T5 if kind == "seq2seq" else TINY, "tokenizer": "toy"}
    job = {**job, "num_steps": 2, "model": {**job["model"], **model, "path": None, "dtype": "float32"}}
    labelled = job.get("objective") == "labelled" or kind == "ilql"
    path = str(folder / "labelled.jsonl") if labelled else DATA.get(kind, "toy:reviews/pairs")
    job["data"] = {"path": path, "size": 6 if kind == "reward" and not labelled else 32}  # 6: a batch spans two epochs
    if kind != "ppo":
        heldout = job["data"] if labelled else {**job["data"], "split": "heldout"}
        job |= {"batch_size": 4, "max_length": 64, "evaluate": {**job.get("evaluate", {}), "every": 1, "data": heldout}}
        job |= {"stride": 8} if kind == "qa" else {}
        return job
    if any(t.get("rule") in ("right_class", "chrf", "token_f1", "exact_answer") for t in job["rewards"]["terms"]):
        job["data"]["path"] = "toy:arithmetic/prompts"  # rules that want an answer
    job["data"]["max_prompt_tokens"] = 32
    job["evaluate"] = {}
    job["rollout"] = {**job["rollout"], "prompts_per_step": 4, "chunk_prompts": 2, "max_new_tokens": 8}
    job["rollout"]["engine"] = {"dtype": "float32"}
    job["rewards"] = {"terms": [term(t, folder) for t in job["rewards"]["terms"]]}
    job["algorithm"] = {**job["algorithm"], "group_size": 2} if "group_size" in job["algorithm"] else job["algorithm"]
    return job


def asked(job, folder):
    """Answers of a model of its own to sums of the offline world; an evaluation is against another model."""
    data = {"path": "toy:arithmetic/prompts", "size": 12, "max_prompt_tokens": 32}
    rollout = {"max_new_tokens": 4, "chunk_prompts": 4, "engine": {"dtype": "float32"}}
    model = {"init": TINY, "tokenizer": "toy", "path": None}
    terms = [term(t, folder) for t in job["rewards"]["terms"]]
    job = {**job, "model": model, "data": data, "rollout": rollout, "rewards": {"terms": terms}, "samples": 3}
    if job["job"] == "evaluate":
        measures = [*job.get("measures", []), "bleu", "chrf", "classes"]
        job |= {"against": "stage:sft", "groups": ["answer"], "measures": measures, "greedy": False, "pass_at": [1, 2]}
    return job


def term(value, folder):
    """The reward term, at a place that exists here."""
    places = {
        "model": "stage:reward", "likelihood": "stage:sft", "classifier": "stage:classify",
        "function": f"{folder}/reward.py:reward",
    }  # fmt: skip
    value = {**value, "label": "good"} if value["type"] == "classifier" else value  # sums have no label
    return {**value, "path": places[value["type"]]} if value["type"] in places else value


def stages(folder, names):
    """One pipeline of these job files, models that others take first; a pipeline file gives its stages."""
    (folder / "reward.py").write_text(REWARD)
    rows = [
        {
            "text": f"the staff was {w}",
            "prompt": "the staff",
            "completion": f" was {w}",
            "label": label,
            "reward": label,
        }
        for w, label in (("great", 1), ("awful", 0))
    ] * 16
    (folder / "labelled.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = {}
    for name in names:
        job = yaml.safe_load(JOBS[name].read_text())
        inner = {f"{name}_{n}": s for n, s in job["stages"].items()} if job["job"] == "pipeline" else {name: job}
        found |= {n: tiny(s, folder) for n, s in inner.items()}
    for job in found.values():
        job.pop("run", None)
        job.pop("cluster", None)  # stages have the pipeline's
        job.pop("tune", None)  # of a file of its own
    return dict(sorted(found.items(), key=lambda item: (item[0] not in ("reward", "sft", "classify"), item[0])))


def run(train, folder, every):
    """The pipeline of these stages: two steps and a model from each that learns."""
    train({"job": "pipeline", "cluster": {"num_threads": 1}, "stages": every}, folder / "all", timeout=560)
    for name, stage in (
        (n, s) for n, s in every.items() if s["job"] not in ("evaluate", "sample", "score", "tokenizer")
    ):
        steps = read_metrics(folder / "all" / name)
        assert len(steps) == 2, name
        assert not undescribed_metrics(folder / "all" / name), name
        assert (folder / "all" / name / "model" / "model.safetensors").is_file(), name
        if name == "online_dpo":
            assert 0 <= steps[-1]["preference/accuracy"] <= 1
        elif stage["job"] == "ppo" and (name == "ppo" or stage["algorithm"]["type"] != "ppo"):  # one update a step
            assert steps[-1]["policy/ratio_max"] == pytest.approx(1.0, abs=1e-5), name
            assert steps[-1]["kl/update"] < 1e-10, name  # k3 is 0 only where no ratio is below 1 either


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


def mathematics(job, folder):
    """The GSM8K job's questions as the file asks them, of a model of the same family with a chat template, on rows of that form."""
    written = yaml.safe_load(JOBS["gsm8k"].read_text())
    inner = ByteLevelBPETokenizer()
    inner.train_from_iterator([json.dumps(SUMS)] * 2, vocab_size=300, show_progress=False)
    tokens = {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"], "chat_template": CHAT}
    PreTrainedTokenizerFast(tokenizer_object=inner._tokenizer, **tokens).save_pretrained(folder / "qwen")
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, SUMS)))
    data = {"path": str(folder / "sums.jsonl"), "formats": written["data"]["formats"], "max_prompt_tokens": 256}
    model = {**job["model"], "init": QWEN, "tokenizer": str(folder / "qwen")}
    judges = {**written["evaluate"], "every": 0, "data": data}
    return {**job, "model": model, "data": data, "evaluate": judges}


@pytest.mark.learning
def test_the_other_job_files_run_two_steps(train, tmp_path):
    every = stages(tmp_path, ["reward", "sft", "classify", *LATER])
    every["gsm8k"] = mathematics(every["gsm8k"], tmp_path)
    run(train, tmp_path, every)
    (asked, *_) = pq.read_table(tmp_path / "all" / "gsm8k" / "evaluations" / "step-000002.parquet").to_pylist()
    assert json.loads(asked["prompt"])[-1]["content"].startswith(SUMS[0]["question"])
    assert {"part/right", "part/lenient"} <= set(asked)


def test_job_files_run_two_steps(train, tmp_path):
    every = stages(tmp_path, [n for n in FILES if n not in LATER])
    every["grpo"]["model"]["lora"] = {"rank": 2}
    balance = {"rule": "word_balance", "options": {"positive": ["great", "warm"], "negative": ["awful", "cold"]}}
    terms = [{"name": "balance", "type": "rule", **balance}]
    every["score"] = {"job": "score", "data": {"path": "toy:reviews/text", "size": 40}, "rewards": {"terms": terms}}
    every["pretrain"]["data"] = {"path": "stage:score/scored.jsonl", "stream": True, "sampling": {"by": "score"}}
    answers = {"path": str(tmp_path / "labelled.jsonl")}
    every["kto"] = {**every["dpo"], "objective": {"type": "kto"}, "data": answers, "evaluate": {"data": answers}}
    every["ppo"] |= {"ptx_data": {"path": "toy:reviews/text", "size": 16}}
    every["ppo"]["algorithm"] = {**every["ppo"]["algorithm"], "ptx_coef": 0.1, "entropy_coef": 0.01}
    every["ppo"]["algorithm"] |= {"epochs": 1, "num_mini_batches": 1}
    every["ppo"]["critic"]["warmup_steps"] = 1  # the file's 5 would leave the policy, ptx and entropy untried
    every["rejection_sft"] |= {"data": {"path": "stage:rejection_sample/kept.jsonl"}, "evaluate": {}}
    every["rejection_pairs"] = {**every["rejection_sample"], "keep": "pairs"}
    every["rejection_dpo"] = {**every["dpo"], "data": {"path": "stage:rejection_pairs/kept.jsonl"}, "evaluate": {}}
    every = dict(sorted(every.items(), key=lambda item: item[0] in ("rejection_dpo", "rejection_sft", "pretrain")))
    run(train, tmp_path, every)
    exported = [set(load_file(tmp_path / "all" / name / "model" / "model.safetensors")) for name in ("grpo", "rloo")]
    assert exported[0] == exported[1]  # an adapter is merged: a plain model by its plain names
    lines = (tmp_path / "all" / "rejection_sample" / "kept.jsonl").read_text().splitlines()
    assert len(lines) == 12
    assert set(json.loads(lines[0])) == {"prompt", "answer", "completion", "reward"}
    scored = [json.loads(line) for line in (tmp_path / "all" / "score" / "scored.jsonl").read_text().splitlines()]
    assert [row["text"] for row in scored] == [r["text"] for r in toy.generate("reviews/text", "train", 40, 0)]
    assert all(row["score"] == row["score_balance"] for row in scored)
    assert len({row["score"] for row in scored}) > 2
    found = json.loads((tmp_path / "all" / "evaluate" / "evaluation.json").read_text())
    assert (found["prompts"], found["answers"]) == (12, 36)
    assert found["terms"]["f1"]["low"] <= found["terms"]["f1"]["mean"] <= found["terms"]["f1"]["high"]
    assert 0.0 < found["wins"]["f1"]["mean"] < 1.0
    assert sum(found["groups"]["answer"]["f1"]["counts"].values()) == 36
    assert found["pass@2"]["exact_match"]["mean"] >= found["pass@1"]["exact_match"]["mean"]
    assert set(found["measures"]) == {"distinct_1", "distinct_2", "bleu", "chrf", "classes"}
