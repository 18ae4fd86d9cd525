"""Runs a Dockerfile's commands in a root directory, where there is no container engine: `sudo python
docker/in_chroot.py ROOT cpu`.

ROOT stands for the base image: a Debian with Python 3.11 and pip (docker/README.md says how to make one). Layers,
caches and isolation are not imitated. pip's variables are passed on. It ends with the health check and the version, as
the image's user.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = HERE.parent
TAKEN = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CERT", "PIP_BREAK_SYSTEM_PACKAGES")


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, its arguments) in order, continuation lines joined, comments left out."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [(kind.upper(), rest.strip()) for kind, _, rest in (line.partition(" ") for line in joined)]


class Root:
    """A root directory on its way to being an image."""

    def __init__(self, root: Path) -> None:
        self.root, self.user, self.workdir = root, "0", "/"
        self.env = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"} | {
            k: os.environ[k] for k in TAKEN if k in os.environ
        }

    def run(self, command: str) -> None:
        """A shell command inside. Raises CalledProcessError."""
        print(f"+ [{self.user}] {command}", flush=True)
        home = {"HOME": "/root" if self.user == "0" else "/home/ray"}
        line = [
            "chroot",
            f"--userspec={self.user}:{self.user}",
            self.root,
            "/bin/sh",
            "-ec",
            f"cd {self.workdir}; {command}",
        ]
        subprocess.run(line, env=self.env | home, check=True)

    def copy(self, *arguments: str) -> None:
        """Files of the project that are under version control, which .dockerignore leaves in the context."""
        *sources, target = [a for a in arguments if not a.startswith("--")]
        place = self.root / self.workdir.lstrip("/") / target
        tracked = subprocess.run(
            ["git", "-C", SOURCE, "ls-files"], check=True, capture_output=True, text=True
        ).stdout.split("\n")
        for pattern in sources:
            for name in [n for n in tracked if n and (pattern == "." or Path(n).match(pattern))]:
                to = place / (name if pattern == "." else Path(name).name)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(SOURCE / name, to)
        for option in [a for a in arguments if a.startswith("--chown=")]:
            self.run(f"chown -R {option.removeprefix('--chown=')} {target}")

    def do(self, kind: str, rest: str) -> None:
        """One instruction. Raises ValueError for one that is not known here."""
        rest = re.sub(r"\$\{(\w+)\}", lambda m: self.env[m[1]] if m[1] in self.env else m[0], rest)
        if kind == "RUN":
            self.run(rest)
        elif kind == "COPY":
            self.copy(*shlex.split(rest))
        elif kind == "USER":
            self.user = rest
        elif kind == "WORKDIR":
            self.workdir = rest
            (self.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif kind in ("ENV", "ARG"):
            pairs = [pair.split("=", 1) for pair in shlex.split(rest) if "=" in pair]
            self.env = {k: v for k, v in pairs if kind == "ENV" or k not in self.env} | self.env
        elif kind not in ("FROM", "CMD", "HEALTHCHECK"):
            raise ValueError(f"{kind}: not known here")


if __name__ == "__main__":
    image = Root(Path(sys.argv[1]).resolve())
    image.env["DEVICE"] = sys.argv[2]
    steps = instructions((HERE / "Dockerfile").read_text())
    for step in steps:
        image.do(*step)
    (health,) = [rest for kind, rest in steps if kind == "HEALTHCHECK"]
    image.run(shlex.join(re.findall(r'"([^"]+)"', health)))
    image.run("rlhf-ray --version")
