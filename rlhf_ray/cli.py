"""The command line: `rlhf-ray train JOB.yaml [key.path=value ...]`; parses, calls, turns errors into exit codes."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from . import __version__
from ._compat import hide_sklearn
from .config import BadInput, ClusterConfig, load_job, load_search
from .config.options import listing, search
from .run.events import TerminalHandler
from .run.outcome import Failed, Stopped

Commands = Any  # argparse's own type of a group of subparsers is private
Command = Callable[[argparse.Namespace], int]

EPILOG = """\
examples:
  rlhf-ray train jobs/quickstart.yaml
  rlhf-ray train jobs/rl/ppo.yaml model.path=/models/qwen run.dir=runs/ppo learner.zero_stage=3
  rlhf-ray tune jobs/recipes/tune.yaml
  rlhf-ray plan jobs/rl/ppo.yaml model.path=/models/qwen
  rlhf-ray report runs/quickstart/ppo
  rlhf-ray evaluate runs/quickstart/ppo jobs/evaluate/reviews.yaml against=runs/quickstart/sft/model
  rlhf-ray options learning_rate
  ray job submit --working-dir . -- rlhf-ray train jobs/rl/ppo.yaml run.dir=/shared/runs/ppo
  rlhf-ray submit jobs/rl/ppo.yaml run.dir=/shared/runs/ppo --address http://head:8265

`rlhf-ray COMMAND --help` has more. The same `train` command on an existing run directory continues it from its last
checkpoint. Exit codes: 0 done, 1 failed, 2 bad input, 3 stopped from outside with a checkpoint.
"""

TRAIN_EPILOG = """\
A job file is YAML and holds only what differs from the defaults. Its key `job` is one of:
  ppo         reinforcement learning; algorithm.type: ppo, grpo, dr_grpo, dapo, rloo, reinforce, reinforce_plus_plus,
              reinforce_plus_plus_baseline, remax, gspo, cispo, online_dpo     (jobs/rl/)
  tokenizer   a tokenizer from a corpus                                        (jobs/supervised/)
  pretrain    pre-training, objective: causal or masked
  sft         supervised fine-tuning on prompts and completions, or messages
  classify, tag, qa   classes of texts or words, extractive question answering
  seq2seq     translation with an encoder-decoder
  reward      a reward model from pairs, labels, scores or steps               (jobs/preferences/)
  dpo         preferences without RL; objective.type: dpo, ipo, kto, orpo, simpo
  ilql        values of recorded answers
  evaluate, sample, score   answers judged, kept as data; texts judged         (jobs/evaluate/, jobs/recipes/)
  pipeline    several of these, in order                                       (jobs/quickstart.yaml)

examples:
  rlhf-ray train jobs/quickstart.yaml
  rlhf-ray train jobs/supervised/sft.yaml model.path=MODEL data.path=train.jsonl learner.lr=1e-5
  rlhf-ray train jobs/rl/grpo.yaml model.path=MODEL data.path=prompts.jsonl rewards.terms.0.path=reward.py:reward
  rlhf-ray train jobs/rl/grpo.yaml ... num_steps=400        (the same run, made longer)

Find an option: `rlhf-ray options WORD`, also by the name that TRL, OpenRLHF or verl give it. Check a job before it
runs: `rlhf-ray plan JOB.yaml`, `rlhf-ray data JOB.yaml`. One page for each algorithm and stage is in docs/.
Exit codes: 0 done, 1 failed, 2 bad input, 3 stopped from outside (SIGTERM, Ctrl-C) with a checkpoint.
"""


PLAN_EPILOG = """\
plan reports the same errors as train, with exit code 2: data files, model directories, the model's context, reward
functions, rules and optional packages that are missing here. It loads no tokenizer and no weights, and starts no Ray.
So only train finds rows that are too long or malformed, a vocabulary that does not fit, and a run directory that
belongs to another job. With --gpus the job is for other machines, whose packages are not checked. The context of a
`model.init` is checked only if it names max_position_embeddings, that of a model id only if its config.json can be
downloaded. `rlhf-ray data` reads the rows.
Exit codes: 0 it fits, or there is no estimate; 1 it does not fit; 2 bad input.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    args = parse_arguments(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger().handlers[0].setLevel(logging.WARNING)  # INFO is for a run's log; TerminalHandler shows notices
    logging.getLogger("DeepSpeed").addFilter(lambda r: "accelerator" not in str(r.msg))  # the driver needs none
    terminal = TerminalHandler()
    try:
        return int(args.call(args))
    except (BadInput, Failed, Stopped) as error:
        print(f"rlhf-ray: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, BadInput) else 3 if isinstance(error, Stopped) else 1
    except KeyboardInterrupt:
        print("rlhf-ray: interrupted; the last checkpoint is whole", file=sys.stderr)
        return 1
    except Exception:
        logging.getLogger("rlhf_ray").exception("failed")
        return 1
    finally:
        terminal.close()


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of a command line, with overrides also after options, where argparse allows none."""
    top = parser()
    args, rest = top.parse_known_args(argv)
    if rest and not (hasattr(args, "overrides") and all("=" in word and not word.startswith("-") for word in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    return args


def parser() -> argparse.ArgumentParser:
    """The argument parser of all commands."""
    top = argparse.ArgumentParser(
        prog="rlhf-ray",
        description="RLHF on Ray: rollout, reward and learner actors under one driver.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"rlhf-ray {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_train, _add_tune, _add_plan, _add_data, _add_doctor, _add_submit, _add_evaluate, _add_report):
        add(commands)
    _add_options(commands)
    return top


def _command(commands: Commands, name: str, call: Command, text: str, epilog: str = "") -> argparse.ArgumentParser:
    sub: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sub.set_defaults(call=call)
    return sub


def _add_job(sub: argparse.ArgumentParser, text: str = "job file; jobs/ has one for each stage and algorithm") -> None:
    sub.add_argument("job", metavar="JOB.yaml", help=text)
    sub.add_argument("overrides", nargs="*", metavar="key.path=value", help="options that replace those of the file")


def _add_train(commands: Commands) -> None:
    sub = _command(commands, "train", _train, "run a job, or continue one from its last checkpoint", TRAIN_EPILOG)
    _add_job(sub)


def _train(args: argparse.Namespace) -> int:
    from .api import start

    start(load_job(args.job, args.overrides))
    return 0


def _add_tune(commands: Commands) -> None:
    text = "search the options that the job's `tune:` section names, or continue a search"
    _add_job(_command(commands, "tune", _tune, text))


def _tune(args: argparse.Namespace) -> int:
    from .actors.environment import authenticate

    job_search = load_search(args.job, args.overrides)
    authenticate(job_search.cluster)  # before Ray is imported
    hide_sklearn()
    from .report.console import plain_console
    from .search.search import run_search

    run_search(job_search, plain_console())
    return 0


def _add_plan(commands: Commands) -> None:
    text = "check a job and estimate it: batches, placement, memory, seconds of a step; yes or no, and what would help"
    sub = _command(commands, "plan", _plan, text, PLAN_EPILOG)
    _add_job(sub)
    sub.add_argument("--gpus", metavar="8xH100-80GB", help="GPUs of each node; by default this machine's, or its cores")
    sub.add_argument("--nodes", type=int, default=1, help="number of such nodes (default 1)")
    sub.add_argument("--from", dest="run", metavar="RUN", help="take lengths and speed from a run's metrics")
    sub.add_argument("--scale", action="store_true", help="also simulate up to 256 times as many devices")
    sub.add_argument(
        "--reward-seconds", type=float, default=0.0, help="seconds that the reward of a chunk waits for a service"
    )


def _plan(args: argparse.Namespace) -> int:
    from .jobs.preflight import check_job
    from .plan import text as plan

    job = load_job(args.job, args.overrides)
    check_job(job, packages=args.gpus is None)
    device = "cpu" if job.job == "tokenizer" else job.cluster.device
    answer = plan.answer(job, plan.hardware(args.gpus, args.nodes, device), args.run, args.scale, args.reward_seconds)
    _print_lines(answer.lines)
    return 1 if answer.yes is False else 0


def _add_data(commands: Commands) -> None:
    text = "check a job's data: rows, lengths in tokens, duplicates, labels, leakage"
    _add_job(_command(commands, "data", _data, text), "job file; of a pipeline all stages are checked")


def _data(args: argparse.Namespace) -> int:
    hide_sklearn()
    from .jobs.data_report import data_report
    from .jobs.preflight import check_job

    job = load_job(args.job, args.overrides)
    check_job(job)
    return _print_lines(data_report(job))


def _add_doctor(commands: Commands) -> None:
    text = "check versions, devices, Ray, the run directory, and that engine and learner agree"
    sub = _command(commands, "doctor", _doctor, text)
    sub.add_argument("--dir", default="runs", help="where run directories will be (default runs)")
    sub.add_argument("--address", help="Ray cluster to look at; by default RAY_ADDRESS, else a local session")
    sub.add_argument("--model", help="model directory or Hugging Face id that the memory must have room for")
    sub.add_argument("--quick", action="store_true", help="without the run that compares engine and learner")


def _doctor(args: argparse.Namespace) -> int:
    from .actors.environment import authenticate

    cluster = ClusterConfig(address=args.address)
    authenticate(cluster)  # before Ray is imported
    from .plan import doctor

    all_well = True
    for finding in doctor.examine(Path(args.dir), cluster, args.quick, args.model):
        print(finding, flush=True)
        all_well &= finding.well
    return 0 if all_well else 1


def _add_submit(commands: Commands) -> None:
    sub = _command(commands, "submit", _submit, "train on a cluster through Ray's job API, and follow the log")
    _add_job(sub, "job file in the working directory; checked here first")
    sub.add_argument("--address", help="dashboard of the cluster, http://HEAD:8265; by default Ray's own variables")
    sub.add_argument("--working-dir", default=".", help="directory that the job gets a copy of (default .)")
    sub.add_argument("--token-file", help="file with the cluster's token; by default Ray's own places")
    sub.add_argument("--env", action="append", default=[], metavar="NAME[=VALUE]", help="variable of the job")
    sub.add_argument("--submission-id", help="name of the submission; by default Ray makes one")
    sub.add_argument("--no-wait", action="store_true", help="print the submission's name and leave")


def _submit(args: argparse.Namespace) -> int:
    job = load_job(args.job, args.overrides)
    env = dict(e.split("=", 1) if "=" in e else (e, os.environ.get(e)) for e in args.env)
    if missing := [name for name, value in env.items() if value is None]:
        raise BadInput(f"--env: {missing[0]} is not set here; set it, or give {missing[0]}=VALUE")
    from .actors.environment import set_client_token

    set_client_token(args.token_file)  # before Ray is imported
    from .actors.submit import connect_client, follow_job, make_request, send_request

    request = make_request("train", job, Path(args.job), Path(args.working_dir), args.overrides, env)
    client = connect_client(args.address)
    name = send_request(client, request, args.submission_id)
    where = f"--address {client.get_address()}"
    print(f"submitted {name}: ray job logs -f {name} {where}; ray job stop {name} {where}", flush=True)
    return 0 if args.no_wait else follow_job(client, name)


def _add_evaluate(commands: Commands) -> None:
    sub = _command(
        commands, "evaluate", _evaluate, "judge a model's answers: a run directory or any Hugging Face model"
    )
    sub.add_argument("model", metavar="MODEL", help="run directory, model directory or Hugging Face id")
    sub.add_argument(
        "words", nargs="*", metavar="[JOB.yaml] key=value", help="a job file (jobs/evaluate/evaluate.yaml), options"
    )


def _evaluate(args: argparse.Namespace) -> int:
    from .api import evaluate, model_of

    files = [word for word in args.words if "=" not in word]
    overrides = [word for word in args.words if "=" in word]
    if len(files) > 1:
        raise BadInput(
            f"evaluate: got {len(files)} job files, {' and '.join(files)}; expected one; other words are key=value"
        )
    if not any(word.startswith("run.dir=") for word in overrides):  # the same question gets the same run directory
        question = json.dumps([files, sorted([f"model.path={model_of(Path(args.model))}", *overrides])])
        overrides.append(f"run.dir=runs/evaluate/{hashlib.sha256(question.encode()).hexdigest()[:10]}")
    evaluate(args.model, files[0] if files else None, *overrides)
    return 0


def _add_report(commands: Commands) -> None:
    sub = _command(commands, "report", _report, "show a run: what it used and cost; for RL, answers before and after")
    sub.add_argument("directory", metavar="RUN", help="run directory")
    sub.add_argument("--samples", type=int, default=3, help="completions shown side by side (default 3)")


def _report(args: argparse.Namespace) -> int:
    from .report.console import plain_console
    from .report.evaluations import compare_first_and_last, comparison_tables
    from .report.usage import report_usage, usage_table
    from .run.directory import correct_state

    directory, console = Path(args.directory), plain_console()
    correct_state(directory)
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


def _add_options(commands: Commands) -> None:
    sub = _command(commands, "options", _options, "list every option of every job: type, default, meaning")
    sub.add_argument(
        "word", nargs="?", default="", help="only options whose path contains this, or that other systems call so"
    )


def _options(args: argparse.Namespace) -> int:
    return _print_lines(search(args.word) if args.word else listing())


def _print_lines(lines: Iterable[str]) -> int:
    """Prints lines until the reader closes the pipe, as `rlhf-ray options | head` does."""
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
