"""The command line: `rlhf-ray train JOB.yaml [key.path=value ...]`. Thin: it parses, calls, and turns errors into exit codes."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .config import BadInput, ClusterConfig, apply_overrides, load, load_search, parse
from .config.options import listing, search
from .run.events import TerminalHandler

EPILOG = """\
examples:
  rlhf-ray train jobs/quickstart.yaml
  rlhf-ray train jobs/rl/ppo.yaml model.path=/models/qwen run.dir=runs/ppo rollout.ahead=1
  rlhf-ray tune jobs/recipes/tune.yaml
  rlhf-ray plan jobs/rl/ppo.yaml model.path=/models/qwen
  rlhf-ray report runs/quickstart/ppo
  rlhf-ray evaluate runs/quickstart/ppo jobs/evaluate/reviews.yaml against=runs/quickstart/sft/model
  rlhf-ray options learner
  ray job submit --working-dir . -- rlhf-ray train jobs/rl/ppo.yaml run.dir=/shared/runs/ppo
  rlhf-ray submit jobs/rl/ppo.yaml run.dir=/shared/runs/ppo --address http://head:8265

The same `train` command on an existing run directory goes on from its last checkpoint.
exit codes: 0 done, 1 failed, 2 bad input, 3 stopped from outside with a checkpoint written
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    known = parser()
    args, more = known.parse_known_args(argv)  # argparse lets no positional argument follow an option: overrides may
    if more and not (hasattr(args, "overrides") and all("=" in m and not m.startswith("-") for m in more)):
        known.error(f"unrecognized arguments: {' '.join(more)}")
    if more:
        args.overrides += more
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger().handlers[0].setLevel(logging.WARNING)  # INFO is for a run's log; TerminalHandler shows notices
    logging.getLogger("DeepSpeed").addFilter(lambda r: "accelerator" not in str(r.msg))  # the driver needs none
    terminal = TerminalHandler()
    try:
        return args.call(args)
    except BadInput as error:
        print(f"rlhf-ray: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rlhf-ray: interrupted; the last checkpoint stands", file=sys.stderr)
        return 1
    except Exception:
        logging.getLogger("rlhf_ray").exception("failed")
        return 1
    finally:
        terminal.close()


def parser() -> argparse.ArgumentParser:
    """The argument parser of all commands."""
    top = argparse.ArgumentParser(
        prog="rlhf-ray", description="RLHF on Ray: rollout, reward and learner actors under one driver.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"rlhf-ray {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for name, call, text in (
        ("train", _train, "run a job (pretrain, sft, reward, dpo, ppo, pipeline), or go on with one"),
        ("tune", _tune, "search the keys that the job's `tune:` section names, or go on with a search"),
        ("plan", _plan, "check a job: batches, placement, memory, seconds of a step; yes or no, and what would help"),
    ):
        sub = _command(commands, name, call, text)
        sub.add_argument("job", metavar="JOB.yaml", help="job file; jobs/ has one for each stage and algorithm")
        sub.add_argument("overrides", nargs="*", metavar="key.path=value", help="options that replace the file's")
    sub.add_argument("--gpus", metavar="8xH100-80GB", help="GPUs of each node; by default this machine's, or its cores")
    sub.add_argument("--nodes", type=int, default=1, help="how many such nodes (default 1)")
    sub.add_argument("--from", dest="run", metavar="RUN", help="take lengths and speed from a run's metrics")
    sub.add_argument("--scale", action="store_true", help="also simulate up to 256 times as many devices")
    sub.add_argument(
        "--reward-seconds", type=float, default=0.0, help="what the reward of a chunk waits for (a service)"
    )
    check = _command(
        commands, "data", _data, "check a job's data: rows, lengths in tokens, duplicates, labels, leakage"
    )
    check.add_argument("job", metavar="JOB.yaml", help="job file; of a pipeline all stages are checked")
    check.add_argument("overrides", nargs="*", metavar="key.path=value", help="options that replace the file's")
    doctor = _command(
        commands,
        "doctor",
        _doctor,
        "check versions, devices, Ray, the run directory, and that engine and learner agree",
    )
    doctor.add_argument("--dir", default="runs", help="where run directories will be (default runs)")
    doctor.add_argument("--address", help="Ray cluster to look at; by default RAY_ADDRESS, else a local session")
    doctor.add_argument("--quick", action="store_true", help="without the run that compares engine and learner")
    _submit_options(
        _command(commands, "submit", _submit, "train on a cluster through Ray's job API, and follow the log")
    )
    evaluate = _command(
        commands, "evaluate", _evaluate, "judge a model's answers: a run directory or any Hugging Face model"
    )
    evaluate.add_argument("model", metavar="MODEL", help="run directory, model directory or Hugging Face id")
    evaluate.add_argument(
        "rest", nargs="*", metavar="[JOB.yaml] key=value", help="a job file (jobs/evaluate/evaluate.yaml), options"
    )
    report = _command(
        commands,
        "report",
        _report,
        "a run: what it used and cost; of a ppo run, answers before and after",
    )
    report.add_argument("directory", metavar="RUN", help="run directory")
    report.add_argument("--samples", type=int, default=3, help="completions shown side by side (default 3)")
    options = _command(commands, "options", _options, "every option of every job: type, default, meaning")
    options.add_argument(
        "word", nargs="?", default="", help="only options whose path contains this, or that other systems call so"
    )
    return top


def _command(commands: Any, name: str, call: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    sub: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    sub.set_defaults(call=call)
    return sub


def _submit_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("job", metavar="JOB.yaml", help="job file in the working directory; checked here first")
    sub.add_argument("overrides", nargs="*", metavar="key.path=value", help="options that replace the file's")
    sub.add_argument("--address", help="dashboard of the cluster, http://HEAD:8265; by default Ray's own variables")
    sub.add_argument("--working-dir", default=".", help="directory that the job gets a copy of (default .)")
    sub.add_argument("--token-file", help="file with the cluster's token; by default Ray's own places")
    sub.add_argument("--env", action="append", default=[], metavar="NAME[=VALUE]", help="variable of the job")
    sub.add_argument("--submission-id", help="name of the submission; by default Ray makes one")
    sub.add_argument("--no-wait", action="store_true", help="print the submission's name and leave")


def _train(args: argparse.Namespace) -> int:
    return _run(load(args.job, args.overrides))


def _submit(args: argparse.Namespace) -> int:
    job = load(args.job, args.overrides)
    env = dict(e.split("=", 1) if "=" in e else (e, os.environ.get(e)) for e in args.env)
    if missing := [name for name, value in env.items() if value is None]:
        raise BadInput(f"--env: {missing[0]} is not set here; set it, or give {missing[0]}=VALUE")
    from .actors.environment import carry_token

    carry_token(args.token_file)  # before Ray is imported
    from .actors import submit

    wanted = submit.request("train", job, Path(args.job), Path(args.working_dir), args.overrides, env)
    client = submit.connect(args.address)
    name = submit.submit(client, wanted, args.submission_id)
    where = f"--address {client.get_address()}"
    print(f"submitted {name}: ray job logs -f {name} {where}; ray job stop {name} {where}", flush=True)
    return 0 if args.no_wait else submit.follow(client, name)


def _tune(args: argparse.Namespace) -> int:
    search = load_search(args.job, args.overrides)
    return _in_ray(search.cluster, "search.search", search)


def _evaluate(args: argparse.Namespace) -> int:
    files = [a for a in args.rest if "=" not in a]
    if len(files) > 1:
        raise BadInput(f"evaluate takes one job file, got {' and '.join(files)}")
    model = Path(args.model)
    if (model / "manifest.json").is_file():
        if not (model / "model").is_dir():
            stages = ", ".join(sorted(p.parent.name for p in model.glob("*/model")))
            better = f"give one of its stages: {stages}" if stages else "let it finish first"
            raise BadInput(f"{model}: the run has no model/ of its own; {better}")
        model = model / "model"
    given = [f"model.path={model}", *(a for a in args.rest if "=" in a)]
    if not any(a.startswith("run.dir=") for a in given):  # the same question again goes to the same place
        asked = json.dumps([files, sorted(given)])
        given.append(f"run.dir=runs/evaluate/{hashlib.sha256(asked.encode()).hexdigest()[:10]}")
    if files:
        return _run(load(files[0], given))
    return _run(parse(apply_overrides({"job": "evaluate"}, given), "command line"))


def _run(job: Any) -> int:
    return _in_ray(job.cluster, "jobs.pipeline", job)


def _in_ray(cluster: ClusterConfig, module: str, what: Any) -> int:
    """``module``.run on ``what``, with the ends that are no failure of the program told in a line."""
    from .actors.environment import authenticate

    authenticate(cluster)  # before Ray is imported
    run = importlib.import_module(f"{__package__}.{module}").run
    from .run.outcome import Failed, Stopped

    try:
        run(what, _console())
    except (Failed, Stopped) as ended:
        print(f"rlhf-ray: {' '.join(str(ended).split())}", file=sys.stderr)
        return 3 if isinstance(ended, Stopped) else 1
    return 0


def _console() -> Any:
    """A terminal that shows text as it is: what users and models write may look like markup ('[/INST]')."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, markup=False, emoji=False)


def _plan(args: argparse.Namespace) -> int:
    from .plan import text as plan

    job = load(args.job, args.overrides)
    device = "cpu" if job.job == "tokenizer" else job.cluster.device
    found = plan.answer(job, plan.hardware(args.gpus, args.nodes, device), args.run, args.scale, args.reward_seconds)
    _listed(found.lines)
    return 1 if found.yes is False else 0


def _doctor(args: argparse.Namespace) -> int:
    from .actors.environment import authenticate

    config = ClusterConfig(address=args.address)
    authenticate(config)  # before Ray is imported
    from .plan import doctor

    well = True
    for finding in doctor.examine(Path(args.dir), config, args.quick):
        print(finding, flush=True)
        well &= finding.well
    return 0 if well else 1


def _data(args: argparse.Namespace) -> int:
    from .jobs.preflight import data_report

    return _listed(data_report(load(args.job, args.overrides)))


def _report(args: argparse.Namespace) -> int:
    from .report.evaluations import compare_first_and_last, comparison_tables
    from .report.usage import report_usage, usage_table

    directory, console = Path(args.directory), _console()
    comparison, usage = compare_first_and_last(directory), report_usage(directory)
    if comparison is not None:
        for table in comparison_tables(comparison, args.samples):
            console.print(table)
    if usage is not None:
        console.print(usage_table(usage))
        if usage.summary is not None:
            console.print(usage.summary)
    if comparison is None and usage is None:
        raise BadInput(
            f"{directory}: neither two evaluations nor counted usage there; give the run directory of a train job"
        )
    return 0


def _options(args: argparse.Namespace) -> int:
    return _listed(search(args.word) if args.word else listing())


def _listed(lines: Iterable[str]) -> int:
    """Prints lines, until who reads has seen enough: `rlhf-ray options | head`."""
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
