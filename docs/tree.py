"""Writes the file tree of README.md from the first sentence of each module's docstring: `make tree`.

`docs/tree.py --check` only compares, and exits with 1 if README.md is out of date.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- tree: made by docs/tree.py -->", "<!-- /tree -->"
WIDTH, COLUMN = 120, 30


def sentence(file: Path) -> str:
    """The first sentence of a module's docstring, without its full stop, on one line."""
    text = " ".join((ast.get_docstring(ast.parse(file.read_text())) or "").split())
    first = re.match(r"(.*?)(?:\.(?=\s|$)|$)", text)
    return first[1] if first else ""


def entry(name: str, depth: int, text: str) -> str:
    """One line of the tree, cut at a word so that it is at most WIDTH characters long."""
    line = f"{'  ' * depth}{name}".ljust(COLUMN) + " " + text
    return line if len(line) <= WIDTH else line[: WIDTH - 4].rsplit(" ", 1)[0].rstrip(",;:") + " ..."


def tree(directory: Path = ROOT / "rlhf_ray", depth: int = 0) -> list[str]:
    """The lines of a package: its own sentence, its subpackages, then its modules."""
    lines = [entry(f"{directory.name}/", depth, sentence(directory / "__init__.py"))]
    for package in sorted(path.parent for path in directory.glob("*/__init__.py")):
        lines += tree(package, depth + 1)
    modules = sorted(file for file in directory.glob("*.py") if file.name != "__init__.py")
    return lines + [entry(file.name, depth + 1, sentence(file)) for file in modules]


def updated(readme: str) -> str:
    """README's text with the tree between its two markers."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return "\n".join([before + BEGIN, "", "```", *tree(), "```", "", END]) + after


if __name__ == "__main__":
    text = README.read_text()
    if "--check" in sys.argv:
        sys.exit(0 if updated(text) == text else "README.md: the file tree is out of date; run `make tree`")
    README.write_text(updated(text))
