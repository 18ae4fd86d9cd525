"""What an operator sees of a run that is going: the metrics endpoint, the log, usage and cost, one id in all of them."""

import contextlib
import http.client
import json
import re
import signal
import time
import urllib.request

import psutil
import pyarrow.parquet as pq
import pytest

from rlhf_ray.run.reader import read_metrics
from tests.helpers import TINY, rl_job
from tests.unit.deploy.test_dashboard import FILE, expressions

pytestmark = pytest.mark.integration

SAMPLE = re.compile(r'^(ray_rlhf_\w+)\{.*?job_kind="(\w+)".*?run_id="([^"]+)".*?\} (\S+)$', re.MULTILINE)


def agents(process):
    """Processes of Ray's node agents below ``process``."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "DashboardAgent" in " ".join(child.cmdline()):
                yield child


def scrape(process):
    """name -> value of our metrics on the endpoint of a local session, found among the ports of the node's agent; and their tags."""
    for agent in agents(process):
        ports = {c.laddr.port for c in agent.net_connections() if c.status == psutil.CONN_LISTEN}
        for port in ports:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                    found = SAMPLE.findall(answer.read().decode(errors="replace"))
            except (OSError, http.client.HTTPException):  # one of its other ports
                continue
            if found:
                return {name: float(value) for name, _, _, value in found}, {(job, run) for _, job, run, _ in found}
    return {}, set()


def test_a_run_shows_its_metrics_keeps_a_log_and_says_what_it_costs(train, tmp_path):
    prompts = rl_job()["data"]
    job = rl_job(
        num_steps=100000,
        evaluate={"data": {**prompts, "split": "heldout", "size": 2}},
        algorithm={"type": "ppo", "kl": {"coef": 0.1}},
    )
    job["cluster"]["price_per_gpu_hour"] = 3.6  # a thousandth for each device-second
    process = train(job, run := tmp_path / "run", wait=False)
    seen, tags, until = {}, set(), time.monotonic() + 120
    try:
        while "ray_rlhf_usage_cost_per_point" not in seen and time.monotonic() < until and process.poll() is None:
            time.sleep(1.0)
            seen, tags = scrape(process)
    finally:
        process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 3, out + err

    steps = read_metrics(run)
    manifest = json.loads((run / "manifest.json").read_text())
    assert tags == {("ppo", manifest["run_id"])}
    assert seen["ray_rlhf_reward_mean"] in [s["reward/mean"] for s in steps]
    assert seen["ray_rlhf_tokens_total"] in [s["usage/total_tokens"] for s in steps]
    wanted = {w for e in expressions(json.loads(FILE.read_text())) for w in re.findall(r"ray_rlhf_\w+", e)}
    # only a supervised job, a held-out evaluation after the first step or a checkpoint would bring these
    others = re.compile(
        r"ray_rlhf_(loss_.*|reward_accuracy|evaluate_.*|time_(evaluate|previous_checkpoint)|usage_checkpoint.*)"
    )
    assert not {name for name in wanted - set(seen) if not others.fullmatch(name)}

    used = manifest["usage"]
    assert (used["steps"], used["device"], used["devices"]) == (len(steps), "CPU", 1.0)
    assert used["tokens"] == sum(s["usage/tokens"] for s in steps)
    after_last_step = used["device_seconds"] - sum(s["usage/device_seconds"] for s in steps)  # its checkpoint
    assert 0 < after_last_step < used["stages"]["checkpoint"] + used["stages"]["other"]
    assert used["cost"] == pytest.approx(used["device_seconds"] / 1000)
    assert sum(used["stages"].values()) == pytest.approx(used["device_seconds"])
    assert all(0 <= s["usage/idle_share"] < 1 for s in steps)

    text = (run / "log.jsonl").read_text()
    log = [json.loads(line) for line in text.splitlines()]
    assert {s["run_id"] for s in [*steps, *log]} == {manifest["run_id"]}
    assert [x["step"] for x in log if x["message"] == "step finished"] == [s["step"] for s in steps]
    assert log[-1]["message"] == "the run is stopped"
    kept = next((run / "checkpoints").glob("*/manifest.json"))
    assert json.loads(kept.read_text())["run_id"] == manifest["run_id"]
    shown = pq.read_table(next((run / "evaluations").glob("*.parquet"))).to_pylist()
    texts = [t for row in shown for t in (row["prompt"], row["completion"].strip()) if len(t) > 8]
    assert len(texts) >= len(shown)
    assert not [t for t in texts if t in text]


def test_slow_paths_are_said(train_here, tmp_path, capsys):
    """gemma2 caps its attention's logits, which neither the KV cache nor packed attention computes."""
    gemma = {**TINY, "model_type": "gemma2", "head_dim": 16}
    job = rl_job(model={"init": gemma, "tokenizer": "toy"}, algorithm={"type": "grpo", "group_size": 2}, num_steps=1)
    train_here(job, tmp_path / "run")
    output, reason = capsys.readouterr().out, "Gemma2Attention uses softcap, which"
    assert f"actor: padded forward passes, which are slower: {reason} packed attention does not have" in output
    assert "Gemma2ForCausalLM: decoding without a KV cache, which is slow: " + reason in output
    assert "decoding without a KV cache" in (tmp_path / "run" / "log.jsonl").read_text()
