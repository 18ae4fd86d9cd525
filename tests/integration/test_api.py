"""The Python API, as the notebook in examples/ uses it: every cell runs, and what it shows is what the run wrote."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import rlhf_ray
from rlhf_ray.config import BadInput
from tests.helpers import ROOT, rl_job

pytestmark = pytest.mark.integration


def test_the_notebook_runs_and_the_reward_rises(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(ROOT / "examples" / "first_run.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the notebook is stored without outputs"
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    shown = ["".join(output.get("text", "") for output in cell.get("outputs", [])) for cell in notebook.cells]
    lines = [line.split() for text in shown for line in text.splitlines() if "kl of the update" in line]
    rewards = [float(words[words.index("reward") + 1]) for words in lines]
    assert len(rewards) == 12
    assert sum(rewards[-3:]) > sum(rewards[:3])
    assert notebook.cells[-2]["outputs"][-1]["data"]["text/plain"] == "16"
    assert "kindness" in notebook.cells[-1]["outputs"][-1]["data"]["text/plain"]


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"no config\.json; expected the run directory"):
        rlhf_ray.load_run(tmp_path)


def test_train_can_be_called_before_and_after_its_package_is_imported(tmp_path):
    code = f"""if True:
        import rlhf_ray
        from rlhf_ray.config import BadInput
        for _ in range(2):
            from rlhf_ray import train
            try:
                train({{"job": "nothing"}}, "run.dir={tmp_path}/run")
            except BadInput:
                print("called")
            import rlhf_ray.train.step_metrics
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout.split() == ["called", "called"]


def test_bad_input_is_an_exception_of_the_api(tmp_path):
    job = rl_job(data={"path": str(tmp_path / "none.jsonl"), "max_prompt_tokens": 32})
    with pytest.raises(BadInput, match=r"none\.jsonl"):
        rlhf_ray.train(job, f"run.dir={tmp_path}/run")
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["state"] == "failed"
