"""The loop in this process with real actors: shared GPUs, bfloat16, evaluations, what is written when, lost workers."""

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file

from rlhf_ray.actors.session import Stop
from rlhf_ray.config import apply_overrides, parse
from rlhf_ray.run.checkpoint import Checkpoints
from rlhf_ray.run.directory import RunDir
from rlhf_ray.run.reader import evaluation_files, read_metrics
from rlhf_ray.train.dispatch import RolloutRequest
from rlhf_ray.train.rl import RL
from rlhf_ray.train.setup import rl_setup
from tests.helpers import end_actor, metrics_of, rl_job, startup_parts, undescribed_metrics
from tests.integration.ledger import ACTIVATIONS, ENGINE, LEARNER, VARIABLE, BookedLearner, BookedRollout

pytestmark = pytest.mark.integration

HELDOUT = {"path": "toy:reviews/prompts", "split": "heldout", "size": 4, "max_prompt_tokens": 32}
CHANGES = [
    "learner.offload=all",
    "model.dtype=bfloat16",
    "rollout.engine.dtype=bfloat16",
    "evaluate.every=1",
    "checkpoint.every=1",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A job of two steps, learner and engine in bfloat16, evaluated after each, where roles share a pretend device in turns.

    It has 80 GB, less than the roles take together and more than any stage needs. ``written`` holds what was on disk when
    a checkpoint was: step, lines of metrics.jsonl, number of evaluations. ``bookings``: what each role held, change by change.
    """
    path, written = tmp_path_factory.mktemp("run"), []

    class Watched(Checkpoints):
        def write(self, step, fill, state):
            written.append((step, len(metrics_of(path)), len(evaluation_files(path))))
            return super().write(step, fill, state)

    job = rl_job(evaluate={"data": HELDOUT}, algorithm={"type": "grpo", "group_size": 2})
    job = parse(apply_overrides(job, [f"run.dir={path}", "cluster.deadline_s=300", *CHANGES]), "job")
    ledger = tmp_path_factory.mktemp("ledger") / "gigabytes.jsonl"
    patch = pytest.MonkeyPatch()
    patch.setenv(VARIABLE, f"{ledger}:80")
    patch.setattr(sys.modules["rlhf_ray.train.setup"], "takes_turns", lambda plan, job: True)
    patch.setattr(sys.modules["rlhf_ray.train.workers"], "RolloutWorker", BookedRollout)
    patch.setattr(sys.modules["rlhf_ray.train.learner_group"], "LearnerWorker", BookedLearner)
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    directory = RunDir(job)
    try:
        with rl_setup(job, path) as setup:
            loop = RL(job, directory, setup, Stop())
            loop.checkpoints = Watched(path / "checkpoints", 2)
            loop.train()
            bookings = [json.loads(line) for line in ledger.read_text().splitlines()]
            yield SimpleNamespace(
                path=path, job=job, loop=loop, learners=loop.learners, written=written, bookings=bookings
            )
    finally:
        patch.undo()
        directory.close()
        ray.shutdown()


def test_a_bfloat16_job_runs_where_rollout_workers_sleep_while_the_learner_works(run):
    steps = metrics_of(run.path)
    assert [line["step"] for line in steps] == [0, 1]
    assert steps[0]["sync/probe_difference"] < 0.3
    saved = load_file(run.path / "model" / "model.safetensors")
    assert {t.dtype for t in saved.values()} == {torch.bfloat16}
    info = run.loop.learners.info
    slow = any("bfloat16 products" in line for line in run.loop.learners.remarks())
    assert slow == (info["peak_flops"] < info["float32_flops"])
    with pytest.raises(RuntimeError, match="asleep"), run.loop.phase("learn"):
        collect(run, [0], samples=1)


def test_roles_that_share_a_device_never_hold_more_than_it_has(run):
    """Nobody ran out of memory (see the fixture), and the device was used: its fullest moment is that of a sync."""
    fullest = max(run.bookings, key=lambda held: sum(held.values()))
    assert fullest == {"learner": LEARNER["weights"], "engine": sum(ENGINE.values())}
    totals = [(held.get("learner"), held.get("engine")) for held in run.bookings]
    assert (0.0, sum(ENGINE.values())) in totals  # rollouts
    assert (LEARNER["weights"] + LEARNER["optimizer"] + ACTIVATIONS, 0.0) in totals  # learning


def test_the_parts_of_the_start_are_timed(run):
    assert startup_parts(run.path) == [
        "reading the model's files and the data",
        "reserving CPUs and GPUs",
        "starting the workers' processes",
        "building the reward terms",
        "building the rollout engines",
        "loading the learner's models",
        "sending the weights to the rollout workers",
    ]


def test_every_metric_is_in_the_glossary(run):
    assert not undescribed_metrics(run.path)


def test_every_step_is_evaluated(run):
    steps = metrics_of(run.path)
    assert [f.stem for f in evaluation_files(run.path)] == ["step-000000", "step-000001", "step-000002"]
    for line in steps:
        assert {"evaluate/reward", "evaluate/kl"} <= set(line)
    assert abs(steps[1]["evaluate/kl"]) > 0


def test_a_step_takes_at_least_as_long_as_its_stages(run):
    """Also the first, which generates before the first evaluation."""
    for line in read_metrics(run.path):
        stages = [line[f"time/{name}"] for name in ("rollout", "annotate", "learn", "wait", "sync")]
        assert line["time/step"] >= sum(stages)


def test_no_checkpoints_seconds_are_lost(run):
    """A step's checkpoint has its seconds in the next line; the last step's are in log.jsonl and usage.json."""
    first, second = read_metrics(run.path)
    assert "time/previous_checkpoint" not in first
    assert second["time/previous_checkpoint"] > 0
    messages = [json.loads(line)["message"] for line in (run.path / "log.jsonl").read_text().splitlines()]
    written = [m for m in messages if re.fullmatch(r"step-00000\d written to checkpoints in \d+\.\d+ s", m)]
    assert [m.split()[0] for m in written] == ["step-000001", "step-000002"]
    usage = json.loads((run.path / "usage.json").read_text())
    assert usage["steps"] == 2
    assert usage["stages"]["checkpoint"] > usage["devices"] * second["time/previous_checkpoint"]


def test_a_recovery_forgets_the_seconds_of_the_step_that_was_cut_short(run):
    run.loop.timer.seconds["learn"] = 1e6
    run.loop.restore()
    run.loop.loop()
    assert "learn" not in run.loop.timer.seconds


def test_a_steps_line_and_evaluation_are_on_disk_before_its_checkpoint(run):
    assert run.written == [(1, 1, 2), (2, 2, 3)]


def test_a_run_that_goes_on_from_its_end_writes_nothing_anew(run):
    before = {f.name: f.read_bytes() for f in evaluation_files(run.path)}
    lines = metrics_of(run.path)
    run.loop.restore()
    run.loop.loop()
    assert metrics_of(run.path) == lines
    assert {f.name: f.read_bytes() for f in evaluation_files(run.path)} == before


def collect(run, prompts, samples):
    """Rollouts of these prompts by the published version."""
    request = RolloutRequest(step=9, version=2, prompts=prompts, first_group=0, samples=samples)
    return run.loop.dispatcher.collect(request, run.loop.data.prompts)


def collect_awake(run):
    """Rollouts of five prompts, as identities and tokens."""
    with run.loop.phase("rollout"):
        batch = collect(run, [0, 1, 2, 3, 4], samples=2)
    return [batch.example_id.tolist(), batch.sample.tolist(), batch.tokens.tolist()]


def test_a_worker_that_holds_no_weights_is_given_them_and_its_chunk_is_done_again(run):
    group, rollouts = run.loop.rollout, collect_awake(run)
    ray.kill(group.actors[0])
    group.actors[0] = group._spawn(0)  # as one that Ray itself restarted would come back
    assert collect_awake(run) == rollouts
    assert group.num_restarts == 0


def test_a_worker_that_dies_while_it_is_caught_up_is_replaced_in_its_turn(run):
    group, on_start, deaths = run.loop.rollout, run.loop.rollout.on_start, []

    def fatal(actor):
        if not deaths:
            deaths.append(actor)
            end_actor(actor)
        on_start(actor)

    group.on_start = fatal
    end_actor(group.actors[0])
    group.call_with_restart("keep_awake", ["weights", "kv_cache"])
    assert (len(deaths), group.num_restarts) == (1, 2)
    group.on_start = on_start


def test_a_rank_that_dies_while_the_group_restarts_is_one_more_death(run):
    learners, calls = run.learners, []

    def work():
        calls.append(learners.group.num_restarts)
        if len(calls) == 1:
            end_actor(learners.group.actors[0])
        return learners.group.broadcast("log_probs", np.array([1, 2, 3]), 1.0)

    start = learners.start

    def fatal():
        if learners.group.num_restarts == 1:
            end_actor(learners.group.actors[0])
        start()

    learners.start = fatal
    (log_probs,) = learners.recover(work, run.loop.memory.before_restart)
    assert (log_probs[1:] < 0).all()
    assert calls == [0, 2]
    learners.start = start


def test_closing_rollouts_ends_what_is_in_flight(run):
    rollouts = run.loop.rollouts
    rollouts.thread = ThreadPoolExecutor(1)
    with run.loop.phase("rollout"):
        rollouts._launch(2)
        rollouts.close()
    assert run.loop.rollout.ended
    assert rollouts.futures[2].done()
    with pytest.raises(RuntimeError, match="were ended"):
        run.loop.rollout.replace(0)
