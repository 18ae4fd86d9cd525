"""The simulated step of `rlhf-ray plan` against real runs: what more rollout workers and steps ahead do to a step's seconds.

One run (a rollout worker, nothing ahead) calibrates the formulas, as `plan --from` does; every other setting is predicted from
it and then run. Lengths are what the random model samples, a long tail cut at the limit. The ratio is predicted over measured.
"""

import argparse
import itertools
import tempfile
from pathlib import Path

import yaml

from rlhf_ray.config import parse
from rlhf_ray.plan import calibrate, forecast
from rlhf_ray.plan.model_shapes import job_models
from rlhf_ray.plan.requirements import Setting
from rlhf_ray.plan.text import hardware
from tests.benchmarks.paired import report
from tests.helpers import rl_job, run_job


def job(workers, ahead, args):
    """A GRPO job of one-thread workers and eight chunks a step."""
    tree = rl_job(num_steps=args.steps, algorithm={"type": "grpo", "group_size": 4}, log={"progress": False})
    del tree["critic"]
    tree["cluster"] = {**tree["cluster"], "device": "cpu"}
    tree["model"] = {**tree["model"], "init": {**tree["model"]["init"], "hidden_size": args.width}}
    tree["rollout"] = {
        "prompts_per_step": 64, "chunk_prompts": 8, "max_new_tokens": args.tokens, "ahead": ahead, "num_workers": workers,
        "engine": {"max_rows": 32},
    }  # fmt: skip
    tree["learner"] = {"lr": 1e-6, "micro_batch_tokens": 4096}
    return tree


def run(tree, directory):
    """Runs the job; returns its run directory and the median seconds of its stages."""
    file = directory / "job.yaml"
    file.write_text(yaml.safe_dump(tree))
    run_job(file, directory / "run", timeout=1200)
    lines = calibrate.steady_metrics(directory / "run")
    ahead = tree["rollout"]["ahead"]
    kept = lines[ahead : -1 - ahead]  # the last writes a checkpoint and has none ahead
    return directory / "run", calibrate.measured(kept)


def predict(tree, calibrated):
    """Predicted seconds of the stages."""
    return forecast.forecast(parse(tree, "benchmark"), calibrated).seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3, 4], help="rollout workers")
    parser.add_argument("--ahead", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=96, help="most sampled tokens of a response")
    parser.add_argument("--width", type=int, default=256, help="hidden size of the model")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        base = job(1, 0, args)
        on = hardware(None, 1, "cpu")
        ran, found = run(base, Path(directory))
        parsed = parse(base, "benchmark")
        given = Setting(job_models(parsed, {}), on, forecast.lengths(parsed))
        given = forecast.calibrated(given, ran, {})
    measured = {(1, 0): found}
    for workers, ahead in itertools.product(args.workers, args.ahead):
        tree = job(workers, ahead, args)
        if (workers, ahead) not in measured:
            with tempfile.TemporaryDirectory() as directory:
                measured[workers, ahead] = run(tree, Path(directory))[1]
        saw, said = measured[workers, ahead], predict(tree, given)
        rows.append(
            {
                "case": f"{workers} rollout workers, ahead={ahead}", "ours_s": said["step"], "theirs_s": saw["step"],
                "ratio": said["step"] / saw["step"], "predicted": said, "measured": saw,
            }
        )  # fmt: skip
        print(f"{rows[-1]['case']}: predicted {said}, measured {saw}", flush=True)
    report("simulated step: predicted seconds (ours) against measured (theirs)", rows)


if __name__ == "__main__":
    main()
