"""Tiny reward models, and rewards of a few completions by a worker."""

import numpy as np
import pyarrow as pa
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from rlhf_ray.batch import from_sequences
from rlhf_ray.config import RewardsConfig
from rlhf_ray.rewards.worker import RewardWorker
from rlhf_ray.toy import world as toy
from tests.helpers import TINY

TALK = [{"role": "user", "content": "the view"}]


def make_judge(path, tokenizer):
    """A random reward model with this tokenizer at a path; its config names no pad token."""
    tokenizer.save_pretrained(path)
    settings = {k: v for k, v in TINY.items() if k != "model_type"}
    torch.manual_seed(0)
    LlamaForSequenceClassification(LlamaConfig(vocab_size=len(tokenizer), num_labels=1, **settings)).save_pretrained(
        path
    )
    return str(path)


def judge_logit(judge, ids):
    """What transformers gives for one sequence without padding: the score of its last token."""
    model = LlamaForSequenceClassification.from_pretrained(judge).eval()
    return float(model(torch.tensor([ids])).logits[0, 0].detach())


def make_worker(terms, tmp_path):
    toy.tokenizer().save_pretrained(tmp_path / "policy")
    return RewardWorker(RewardsConfig(terms=terms), str(tmp_path / "policy"))


def score_completions(terms, tmp_path):
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
    worker = make_worker(terms, tmp_path)
    worker.check()
    return worker.score(batch, rows, None)["reward_parts"], prompts, completions


def score_conversation(terms, tmp_path):
    """reward_parts of 'was warm .' after a conversation, an answer of four tokens."""
    worker = make_worker(terms, tmp_path)
    ids = worker.tokenizer("the view was warm . <eos>")["input_ids"]
    batch = from_sequences([np.array(ids)], prompt_length=[2], example_id=np.array([4]))
    rows = pa.table({"example_id": [4], "prompt": [TALK], "completion": ["mine"], "completion_ids": ["mine"]})
    return worker.score(batch, rows)["reward_parts"][0].tolist()
