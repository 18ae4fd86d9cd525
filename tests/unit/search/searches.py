"""Searches over a tiny PPO job."""

import yaml

from rlhf_ray.config import Search, load_search
from tests.helpers import rl_job

LR = {"type": "loguniform", "low": 1e-4, "high": 1e-2}
HELDOUT = {"every": 2, "data": {"path": "toy:reviews/prompts", "split": "heldout", "size": 16, "max_prompt_tokens": 32}}


def write_job(tmp_path, job=None, **tune):
    """A job file with a section `tune:`."""
    job = job or rl_job(evaluate=HELDOUT, num_steps=4)
    file = tmp_path / "job.yaml"
    section = {"space": {"learner.lr": LR}, "objective": {"max_kl": 5.0}, **tune}
    file.write_text(yaml.safe_dump({**job, "tune": section}, sort_keys=False))
    return file


def make_search(tmp_path, job=None, overrides=(), **tune) -> Search:
    """The search of such a file."""
    return load_search(write_job(tmp_path, job, **tune), [f"run.dir={tmp_path / 'run'}", *overrides])
