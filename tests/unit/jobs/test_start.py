"""What is answered before torch and Ray are imported."""

import json
import subprocess
import sys

from rlhf_ray.config import parse
from rlhf_ray.run.directory import RunDir
from tests.helpers import rl_job

CODE = """
import sys
from rlhf_ray.cli import main
assert main(["train", sys.argv[1]]) == 0
assert not {"torch", "ray"} & set(sys.modules)
"""


def test_a_finished_run_says_so_without_torch_and_ray(tmp_path):
    tree = rl_job(run={"dir": str(tmp_path / "run")})
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(tree))
    job = parse(tree, "job")
    with RunDir(job) as run:
        (run.path / "model").mkdir()
        lines = "".join(json.dumps({"step": step}) + "\n" for step in range(job.num_steps))
        (run.path / "metrics.jsonl").write_text(lines)
        run.record("finished")
    ended = subprocess.run(
        [sys.executable, "-c", CODE, str(file)], capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert "finished already, nothing to do" in ended.stdout
