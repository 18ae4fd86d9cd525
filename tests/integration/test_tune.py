"""A real search: trials in placement groups of their own, a stop from outside, and the same command again."""

import json
import signal
import subprocess
import sys

import pytest
import yaml

from rlhf_ray.config import load_job
from rlhf_ray.run.checkpoint import complete_checkpoints
from rlhf_ray.run.reader import read_manifest
from tests.helpers import ROOT, TINY, metrics_of

pytestmark = pytest.mark.integration

JOB = {
    "job": "pretrain",
    "run": {"seed": 0},
    "model": {"init": TINY, "tokenizer": "toy"},
    "data": {"path": "toy:reviews/text", "size": 128},
    "evaluate": {"every": 8, "data": {"path": "toy:reviews/text", "split": "heldout", "size": 16}},
    "num_steps": 96,
    "batch_size": 8,
    "max_length": 64,
    "tune": {
        "space": {"learner.lr": {"type": "grid", "values": [1e-6, 3e-3]}},
        "num_samples": 1,
        "max_concurrent": 2,
        "scheduler": {"type": "median", "min_trials": 2, "grace": 96},
        "objective": {"metric": "-loss/cross_entropy"},
    },
}


def command(file, run_dir):
    return [sys.executable, "-m", "rlhf_ray", "tune", str(file), f"run.dir={run_dir}"]


def test_a_search_that_is_stopped_from_outside_continues(tmp_path):
    file, run = tmp_path / "job.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(JOB, sort_keys=False))
    pipe = subprocess.PIPE
    first = subprocess.Popen(command(file, run), stdout=pipe, stderr=pipe, text=True, cwd=ROOT)
    names, last = set(), ""
    for line in first.stdout:
        if " step " in line:
            last = line.split()[0]
            names.add(last)
        if len(names) == 2:
            first.send_signal(signal.SIGTERM)
            break
    out, error = first.communicate(timeout=120)
    assert first.returncode == 3, out + error
    assert "the same command continues the search" in error
    assert all(complete_checkpoints(run / "trials" / name / "checkpoints") for name in names)

    second = subprocess.run(command(file, run), capture_output=True, text=True, timeout=240, cwd=ROOT, check=False)
    assert second.returncode == 0, second.stdout + second.stderr
    results = json.loads((run / "tune.json").read_text())
    assert {t["name"] for t in results["trials"]} == names  # the same trials, not new ones
    for trial in results["trials"]:
        run_dir = run / "trials" / trial["run"]
        assert trial["state"] == "finished"
        assert read_manifest(run_dir)["run_id"].startswith(f"{read_manifest(run)['run_id']}.")
        assert [m["step"] for m in metrics_of(run_dir)] == list(range(96))  # nothing twice, nothing left out
        assert [h["step"] for h in trial["history"]] == list(range(8, 97, 8))
    assert "going on from step-" in (run / "trials" / last / "output.txt").read_text()
    best = next(t for t in results["trials"] if t["name"] == results["best"])
    assert best["values"] == {"learner.lr": 3e-3}
    assert (run / "trials" / best["run"] / "model" / "model.safetensors").is_file()
    assert load_job(run / "best.yaml").learner.lr == 3e-3
    assert "<svg" in (run / "trials.svg").read_text()
