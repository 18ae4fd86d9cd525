"""The rules of the house: imports point down, heavy libraries have one door each, functions and files stay small."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "rlhf_ray"
FILES = sorted(PACKAGE.rglob("*.py"))
LEVELS = [
    {"config"},
    {"batch", "flops", "_compat", "toy"},
    {"run"},
    {"actors", "algorithms", "data", "models", "quality", "weights"},
    {"learner", "rewards", "rollout"},
    {"tasks"},
    {"train"},
    {"report"},
    {"jobs"},
    {"plan", "search"},
    {"api"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}
MOST_CLASS_CHECKS = 14  # may only fall
DOORS = {
    "ray": ("actors/", "train/", "search/", "weights/", "run/sinks.py", "jobs/", "plan/doctor.py"),
    "deepspeed": ("learner/zero.py",),
    "vllm": ("rollout/vllm_engine.py",),
}


def imports(tree, parts):
    """(top-level module or part of the package, line, whether it is of the package) of every import in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").split(".")[0], node.lineno, False
        elif isinstance(node, ast.ImportFrom):
            above = parts[: len(parts) - node.level]
            module = [*above, *(node.module or "").split(".")] if node.module else [*above]
            for name in [module[0]] if module and module[0] else [alias.name for alias in node.names]:
                yield name, node.lineno, True


def violations(file, root=PACKAGE):
    """Sentences about what a file imports and should not."""
    place = file.relative_to(root)
    parts = [*place.with_suffix("").parts]
    room, messages = parts[0], []
    for name, line, inside in imports(ast.parse(file.read_text()), parts):
        if inside and name in LEVEL and name != room and room in LEVEL and LEVEL[name] >= LEVEL[room]:
            messages.append(f"{place}:{line}: {room} imports {name}, which is not below it")
        if not inside and name in DOORS and not str(place).startswith(DOORS[name]):
            messages.append(f"{place}:{line}: {name} has its door elsewhere")
        if not inside and room == "config" and name in ("torch", "transformers"):
            messages.append(f"{place}:{line}: config imports {name}")
    return messages


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_down_and_heavy_libraries_have_one_door(file):
    assert not violations(file)


def test_every_part_of_the_package_has_a_level():
    assert {f.relative_to(PACKAGE).with_suffix("").parts[0] for f in FILES} - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("algorithms/x.py", "from ..train import rl"),
        ("rollout/x.py", "from ..learner.worker import LearnerWorker"),
        ("rollout/x.py", "from .. import rewards"),
        ("data/x.py", "import ray"),
        ("train/x.py", "import deepspeed.zero"),
        ("config/x.py", "import torch"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, place, line):
    file = tmp_path / place
    file.parent.mkdir()
    file.write_text(f"def f():\n    {line}\n")
    assert len(violations(file, tmp_path)) == 1


def test_config_brings_neither_torch_nor_ray():
    code = "import sys, rlhf_ray.config; assert not {'torch', 'ray', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_no_process_starts_with_what_it_may_never_need():
    """Each of these takes a worker seconds."""
    late = {"vllm", "deepspeed", "peft", "sklearn", "scipy.stats", "pandas"}
    code = (
        "import sys, rlhf_ray._compat as c; c.hide_sklearn(); import rlhf_ray.jobs.start; "
        f"assert not {late} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_functions_and_files_stay_small(file):
    assert len(file.read_text().splitlines()) <= 400
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{file}:{node.lineno} {node.name}"


def test_behaviour_is_chosen_by_records_and_not_by_the_class_of_a_config():
    """A kind of job, an algorithm, an engine is a record.

    A check of a config's class in other packages needs a good reason.
    """
    classes = {
        node.name
        for file in (PACKAGE / "config").glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef) and node.name not in ("BadInput", "ConfigError")
    }
    checks = [
        f"{file.relative_to(PACKAGE)}:{node.lineno}"
        for file in FILES
        if file.parent.name != "config"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "isinstance"
        and classes & {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
    ]
    assert len(checks) <= MOST_CLASS_CHECKS, checks
