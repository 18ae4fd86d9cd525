"""What the documentation's pages say is true: commands, job files, source files, and the headings of a page."""

import ast
import itertools
import re
import shlex
from typing import get_args

import pytest
import yaml

from rlhf_ray import cli
from rlhf_ray.config import load_job, load_search, parse
from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.jobs import PipelineJob, Single
from rlhf_ray.config.options import listing
from tests.helpers import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
READ = [
    *PAGES,
    *(ROOT / name for name in ("README.md", "README.zh.md", "cluster/README.md", "docker/README.md", "jobs/README.md")),
]
COMMAND = re.compile(
    r"(?:^(?:[A-Z0-9_]+=\S+ )*| -- |rlhf-ray:\w+ )(rlhf-ray .*)"
)  # also behind variables, submit, docker
HEADINGS = ["Usage", "What it computes", "Options", "Metrics explained", "Results", "Source"]
ALGORITHMS = [variant.model_fields["type"].default for variant in get_args(get_args(AlgorithmConfig)[0])]
KINDS = [kind.model_fields["job"].default for kind in (*get_args(Single), PipelineJob)]


def blocks(text, *languages):
    """The fenced blocks of a page in these languages ('' for none)."""
    fences = re.findall(r"^```([^\n]*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [body for language, body in fences if language.strip() in languages]


def texts():
    """(file, text) of everything that shows commands: fenced blocks of the pages, comments at the head of job files."""
    for file in READ:
        yield from ((file, body) for body in blocks(file.read_text(), "", "sh"))
    for file in (ROOT / "jobs").rglob("*.yaml"):
        head = itertools.takewhile(lambda line: line.startswith("#"), file.read_text().splitlines())
        yield file, "\n".join(line[4:] for line in head if line.startswith("#   "))


def commands():
    """(file, line) of every `rlhf-ray` command, without the environment variables before it."""
    for file, text in texts():
        for line in text.replace("\\\n", " ").splitlines():
            match = COMMAND.search(line.partition(" #")[0])
            if match:
                yield str(file.relative_to(ROOT)), match[1].strip()


@pytest.mark.parametrize(("file", "line"), sorted(set(commands())))
def test_a_command_parses_and_its_job_loads(file, line):
    words = shlex.split(line.replace("$PWD", "/work"))[1:]
    if words == ["--help"]:
        return
    parser = cli.parser()
    arguments, rest = parser.parse_known_args(words)
    assert all("=" in word and not word.startswith("-") for word in rest), rest  # as cli.main takes them
    jobs = [word for word in words if word.startswith("jobs/")]
    overrides = [word for word in words if "=" in word and not word.startswith("-")]
    for job in jobs:
        model_override = [f"model.path={arguments.model}"] if words[0] == "evaluate" else []
        (load_search if words[0] == "tune" else load_job)(ROOT / job, model_override + overrides)


def test_there_are_commands_to_check():
    assert len(set(commands())) > 60


@pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(DOCS)))
def test_examples_are_what_they_say(file):
    text = file.read_text()
    for body in blocks(text, "yaml"):
        tree = yaml.safe_load(body)
        if "job" in tree:
            parse(tree, str(file))
    for body in blocks(text, "python"):
        compile(body, str(file), "exec")


def test_every_algorithm_and_every_job_kind_has_a_page():
    assert {file.stem for file in (DOCS / "algorithms").glob("*.md")} == set(ALGORITHMS)
    assert {file.stem for file in (DOCS / "stages").glob("*.md")} == {*KINDS, "tune"}


@pytest.mark.parametrize(
    "file", [*(DOCS / "algorithms").glob("*.md"), *(DOCS / "stages").glob("*.md")], ids=lambda file: file.stem
)
def test_the_pages_of_algorithms_and_stages_have_the_same_headings(file):
    assert re.findall(r"^## (.*)$", file.read_text(), re.MULTILINE) == HEADINGS


@pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(DOCS)))
def test_files_that_a_page_names_are_there(file):
    names = re.findall(
        r"`((?:rlhf_ray|jobs|tests|docs|cluster|docker)/[\w./-]+\.(?:py|ya?ml|md|sh|json))`", file.read_text()
    )
    assert not [name for name in names if not (ROOT / name).is_file()]


def test_every_job_file_is_in_the_index():
    index = (ROOT / "jobs" / "README.md").read_text()
    linked = set(re.findall(r"\]\(([\w/.]+\.(?:yaml|py))\)", index))
    files = {
        str(file.relative_to(ROOT / "jobs")) for file in (ROOT / "jobs").rglob("*") if file.suffix in (".yaml", ".py")
    }
    assert linked == files


def messages():
    """The messages that the FAQ quotes: the first cell of each row below its heading."""
    text = (DOCS / "reference" / "faq.md").read_text().partition("## Error messages")[2]
    return re.findall(r"^\| `([^`]+)` +\|", text, re.MULTILINE)


@pytest.fixture(scope="module")
def literals():
    """All string literals of the package, with a separator between the parts of different ones."""
    files = (ROOT / "rlhf_ray").rglob("*.py")
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    return "\0".join(n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str))


@pytest.mark.parametrize("message", messages())
def test_a_quoted_message_is_one_of_the_code(message, literals):
    assert not [part for part in message.split("…") if part not in literals]


def test_there_are_messages_to_check():
    assert len(messages()) > 30


@pytest.mark.parametrize("file", sorted((ROOT / "jobs").rglob("*.yaml")), ids=lambda file: file.stem)
def test_a_job_file_shows_its_command_and_its_page(file):
    head = list(itertools.takewhile(lambda line: line.startswith("#"), file.read_text().splitlines()))
    assert any(re.match(rf"#   .*rlhf-ray \w+ .*{file.relative_to(ROOT)}", line) for line in head)
    page, _, anchor = head[-1].removeprefix("# ").partition("#")
    titles = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(), re.MULTILINE)
    assert not anchor or anchor in [title.lower().replace(" ", "-") for title in titles]


SECTIONS = "run|cluster|checkpoint|log|model|learner|critic|data|algorithm|rollout|rewards|evaluate|objective|tune|mask"
OPTION = re.compile(rf"(?:{SECTIONS})(?:\.\w+)+")


@pytest.fixture(scope="module")
def known():
    """Dotted paths of all options, without the job and without the names of variants."""
    paths = [re.sub(r"\[\w+\]", "", line.split("  ")[0]) for line in listing()]
    return {path.partition(".")[2] for path in paths} | set(paths)  # of `tune` with and without the section's name


def options_on(file):
    """The options in the code spans of a page; in the tables of other systems' names only those of the last column."""
    for line in re.sub(r"^```.*?^```", "", file.read_text(), flags=re.DOTALL | re.MULTILINE).splitlines():
        text = line.rsplit("|", 2)[-2] if "migration" in file.parts and line.startswith("|") else line
        for span in re.findall(r"`([^`]+)`", text):
            yield from (match[0] for word in span.split() if (match := OPTION.fullmatch(word.partition("=")[0])))


@pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(DOCS)))
def test_options_that_a_page_names_are_there(file, known):
    names = {re.sub(r"\.\d+\b", "", name).removesuffix(".type") for name in options_on(file)} - {"log.jsonl"}
    if file.stem == "python":
        names = {name for name in names if not name.startswith("run.")}  # attributes of a Run
    names = {"cluster.gpus" if name.startswith("cluster.gpus.") else name for name in names}  # a dict by role
    assert sorted(names - known) == []
