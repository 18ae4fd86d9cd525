"""A reward behind HTTP that takes two seconds: what is left of it in a step, synchronous and one and two steps ahead.

A GRPO job whose step takes longer than that (a shorter one needs more steps ahead and more reward workers), with a local HTTP
server, a user's reward function that calls it, and as many reward workers as there are pieces in flight. Each setting also
runs with a server that answers at once; the difference is what the reward costs.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

from tests.benchmarks.paired import report
from tests.helpers import rl_job, run_job

FUNCTION = """
import json
import urllib.request


def slow(prompts, completions, **columns):
    request = urllib.request.Request("{url}", json.dumps(completions).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())
"""


class Server(ThreadingHTTPServer):
    """Answers each request after ``delay`` seconds with the length of every completion."""

    daemon_threads = True
    request_queue_size = 64
    delay = 0.0


class Answer(BaseHTTPRequestHandler):
    def do_POST(self):
        texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(self.server.delay)
        body = json.dumps([len(t) / 100 for t in texts]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def step_times(directory, url, ahead, args):
    """Seconds of each step but the first two and the last, from metrics.jsonl."""
    file = directory / "reward.py"
    file.write_text(FUNCTION.format(url=url))
    job = rl_job(num_steps=args.steps, algorithm={"type": "grpo", "group_size": 4}, log={"progress": False})
    del job["critic"]
    job["model"] = {**job["model"], "init": {**job["model"]["init"], "hidden_size": args.width}}
    job["rollout"] = {"prompts_per_step": 16, "chunk_prompts": 16, "max_new_tokens": args.tokens, "ahead": ahead}
    terms = [{"name": "slow", "type": "function", "path": f"{file}:slow"}]
    job["rewards"] = {"num_workers": args.workers, "terms": terms}
    path = directory / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    run = directory / "run"
    run_job(path, run, timeout=1200)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = lines[2:-1]  # the first steps fill the pipeline, the last writes the checkpoint
    keys = ("time/step", "time/rollout", "time/annotate", "time/learn", "time/wait", "time/sync")
    return {key: statistics.median(line[key] for line in kept) for key in keys}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--delay", type=float, default=2.0, help="seconds until the server answers")
    parser.add_argument("--workers", type=int, default=8, help="reward workers; a step comes in about four pieces")
    parser.add_argument("--ahead", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", type=int, default=96, help="sampled tokens of a response")
    parser.add_argument("--width", type=int, default=512, help="hidden size of the model")
    args = parser.parse_args()
    server = Server(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url, rows = f"http://127.0.0.1:{server.server_port}/", []
    for ahead in args.ahead:
        found = {}
        for delay in (0.0, args.delay):
            server.delay = delay
            with tempfile.TemporaryDirectory() as directory:
                found[delay] = step_times(Path(directory), url, ahead, args)
        slow, quick = found[args.delay]["time/step"], found[0.0]["time/step"]
        left = slow - quick
        rows.append(
            {
                "case": f"ahead={ahead}: {left:+.2f} s of {args.delay:g} left", "ours_s": slow, "theirs_s": quick,
                "ratio": quick / slow, "left_s": left, "slow": found[args.delay], "quick": found[0.0],
            }
        )  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    server.shutdown()
    report("slow reward: step with a slow service (ours) against an instant one (theirs)", rows)


if __name__ == "__main__":
    main()
