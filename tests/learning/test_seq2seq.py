"""An encoder-decoder learns the toy dataset's translation, and its directory is judged as any model's. About 2 minutes."""

import json
import subprocess
import sys

import pytest

from tests.helpers import JOBS, ROOT, run_job

pytestmark = [pytest.mark.learning, pytest.mark.timeout(1800)]


def test_translations_are_learnt(tmp_path):
    run_job(JOBS["seq2seq"], tmp_path / "run", timeout=1200)
    evaluation = json.loads((tmp_path / "run" / "seq2seq" / "evaluation.json").read_text())
    assert evaluation["chrf"] > 80
    data = [
        "data.path=toy:translation:heldout", "data.columns={source: prompt, target: answer}", "data.size=50",
        "data.max_prompt_tokens=64", "rollout.max_new_tokens=64", "rewards.terms=[{name: chrf, type: rule, rule: chrf}]",
    ]  # fmt: skip
    line = [sys.executable, "-m", "rlhf_ray", "evaluate", str(tmp_path / "run" / "seq2seq"), *data]
    subprocess.run([*line, f"run.dir={tmp_path / 'judged'}"], check=True, timeout=600, cwd=ROOT)
    judged = json.loads((tmp_path / "judged" / "evaluation.json").read_text())
    assert judged["terms"]["chrf"]["mean"] > 0.8
