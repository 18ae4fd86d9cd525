"""What a pipeline writes about its stages."""

import json

from rich.console import Console

from rlhf_ray.actors.session import Stop
from rlhf_ray.config import parse
from rlhf_ray.jobs.kind import RunContext
from rlhf_ray.jobs.kinds import STAGES
from rlhf_ray.jobs.pipeline import run_stages
from rlhf_ray.run.directory import RunDir
from rlhf_ray.run.reader import read_manifest


def test_a_stage_knows_the_resources_of_the_session(tmp_path):
    """`plan --from RUN/STAGE` reads them to tell a GPU run from a CPU run."""
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"text": "the view was great"}) + "\n")
    stage = {"job": "tokenizer", "data": {"path": str(tmp_path / "corpus.jsonl")}, "vocab_size": 300}
    job = parse({"job": "pipeline", "run": {"dir": str(tmp_path / "run")}, "stages": {"tokens": stage}}, "job")
    with RunDir(job) as run:
        run.record("running", resources={"CPU": 16.0, "GPU": 8.0})
        run_stages(job, RunContext(run=run, stop=Stop(), console=Console(quiet=True)), STAGES)
    manifest = read_manifest(tmp_path / "run" / "tokens")
    assert manifest["state"] == "finished"
    assert manifest["resources"] == {"CPU": 16.0, "GPU": 8.0}
