"""Writes docker/*.lock, every package of an image with its hashes, from pyproject.toml and constraints.txt: `make
lock`.

`build.lock` is what builds source archives, `cpu.lock` and `cuda.lock` are torch for one device and what only it needs,
`packages.lock` is the rest of both. Needs uv and, for the CPU build of torch, PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL
where it lies.
"""

import os
import re
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
BUILD = {"setuptools"}


def resolved(device: str) -> dict[str, str]:
    """Package name to its lines, of the tested versions."""
    pinned = (HERE.parent / "constraints.txt").read_text()
    line = ["uv", "pip", "compile", "--quiet", "--generate-hashes", "--no-header", "--no-annotate", "--extra=dev"]
    line += ["--python-version=3.11", "--python-platform=x86_64-manylinux_2_28", f"{HERE.parent}/pyproject.toml"]
    with tempfile.NamedTemporaryFile("w+", suffix=".txt") as constraints:
        if device == "cpu":
            pinned = re.sub(r"^torch==([\d.]+)$", r"torch==\1+cpu", pinned, flags=re.MULTILINE)
            line += [f"--find-links={place}" for place in os.environ.get("PIP_FIND_LINKS", "").split()]
            line += [f"--extra-index-url={place}" for place in os.environ.get("PIP_EXTRA_INDEX_URL", "").split()]
        constraints.write(pinned)
        constraints.flush()
        text = subprocess.run(
            [*line, "--constraints", constraints.name], check=True, capture_output=True, text=True
        ).stdout
    return {entry.split("==")[0]: entry for entry in re.findall(r"^\S+==(?:.*\\\n)*.*\n", text, re.MULTILINE)}


def write(name: str, entries: dict[str, str]) -> None:
    """One lock file."""
    (HERE / f"{name}.lock").write_text("".join(entries[key] for key in sorted(entries)))


if __name__ == "__main__":
    cpu, cuda = resolved("cpu"), resolved("cuda")
    both = {name: entry for name, entry in cpu.items() if cuda.get(name) == entry}
    write("build", {name: entry for name, entry in both.items() if name in BUILD})
    write("packages", {name: entry for name, entry in both.items() if name not in BUILD})
    for device, found in (("cpu", cpu), ("cuda", cuda)):
        write(device, {name: entry for name, entry in found.items() if name not in both})
