"""Builds the documentation's site from docs/ and from tables of the code: `make docs`.

A page may hold these markers, each a line of its own; the table takes the marker's place in the site:

    <!-- options: ppo.algorithm[grpo] -->    options below this path, from rlhf_ray.config.options
    <!-- metrics: kl/* policy/* -->          metrics by name, from rlhf_ray.run.metric_names
    <!-- run directory -->                   the layout of RUN, from the docstring of rlhf_ray/run/directory.py

A fenced block `math` becomes MathML, so that browsers need no script for it. Files that live elsewhere in the
repository are pages too (INCLUDED). A link to any other file of the repository becomes the file's name.

Problems end the build: a link, anchor or image without a target, a page outside the navigation, a marker that selects
nothing, and anything that a browser would load from another host.
"""

from __future__ import annotations

import ast
import fnmatch
import html
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

ROOT = Path(__file__).parents[1]
DOCS, PAGES, SITE = ROOT / "docs", ROOT / "build" / "docs", ROOT / "build" / "site"
INCLUDED = {
    "operations/cluster.md": "cluster/README.md",
    "operations/images.md": "docker/README.md",
    "operations/security.md": "SECURITY.md",
    "project/jobs.md": "jobs/README.md",
    "project/architecture.md": "ARCHITECTURE.md",
    "project/contributing.md": "CONTRIBUTING.md",
    "project/log.md": "LOG.md",
    "project/changelog.md": "CHANGELOG.md",
}
SHARED = (
    "run",
    "cluster",
    "checkpoint",
    "log",
    "model",
    "learner",
    "data",
    "ptx_data",
    "rollout",
    "rewards",
    "algorithm",
)
FENCE = r"^```(?P<info>[^\n]*)\n(?P<body>.*?)^```\s*?$"
LINK = r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)"
TOKENS = re.compile(f"{FENCE}|{LINK}|`[^`\n]+`", re.DOTALL | re.MULTILINE)
MARKER = re.compile(r"^<!-- (?P<kind>options|metrics|run directory)(?:: (?P<what>.*?))? -->$", re.MULTILINE)


class Problem(Exception):
    """What is wrong with the pages; the message names the file."""


def sources() -> dict[str, Path]:
    """Each page of the site, by its path in it, and the file it is made of."""
    docs_pages = {str(file.relative_to(DOCS)): file for file in sorted(DOCS.rglob("*.md"))}
    return docs_pages | {page: ROOT / file for page, file in INCLUDED.items()}


def expand(text: str, page: str, files: dict[str, Path]) -> str:
    """The text of a page with its markers, formulas and links made for the site. Raises Problem."""

    def token(match: re.Match[str]) -> str:
        if match["target"] is not None:
            return _link(match, page, files)
        if match["info"] is not None and match["info"].strip() == "math":
            return _formula(match["body"])
        return match[0]

    def marker(match: re.Match[str]) -> str:
        rows = TABLES[match["kind"]](match["what"] or "")
        if not rows:
            raise Problem(f"{files[page]}: '{match[0]}' selects nothing")
        return rows

    return MARKER.sub(marker, TOKENS.sub(token, text))


def _link(match: re.Match[str], page: str, files: dict[str, Path]) -> str:
    """A link inside the site by its page; one to another file of the repository as that file's name."""
    path, hash_, anchor = match["target"].partition("#")
    if not path or "://" in path or path.startswith("mailto:"):
        return match[0]
    file = Path(os.path.normpath(files[page].parent / path))
    if not file.exists():
        raise Problem(f"{files[page].relative_to(ROOT)}: the link to {path} has no target")
    pages = {source: name for name, source in files.items()}
    if file.is_dir() and (file / "README.md") in pages:
        file = file / "README.md"
    if file in pages:
        target = os.path.relpath(pages[file], Path(page).parent)
        return f"{match['image']}[{match['text']}]({target}{hash_}{anchor})"
    if match["image"]:
        return f"![{match['text']}]({os.path.relpath(file.relative_to(DOCS), Path(page).parent)})"
    name = f"`{file.relative_to(ROOT)}`"
    return name if match["text"].strip("`") in (path, name.strip("`"), Path(path).name) else f"{match['text']} ({name})"


def _formula(latex: str) -> str:
    from latex2mathml.converter import convert

    lines = [line.strip() for line in re.split(r"\n\s*\n", latex.strip())]
    return "\n".join(f'<div class="formula">{convert(" ".join(line.split()), display="block")}</div>' for line in lines)


def options_table(path: str) -> str:
    """Rows of all options below ``path``; of a whole job without the sections that every job shares (SHARED)."""
    from rlhf_ray.config.options import listing

    rows = []
    for line in listing():
        key, kind, default, meaning = line.split("  ", 3)
        if key != path and not key.startswith((f"{path}.", f"{path}[")):
            continue
        name = key.removeprefix(path).lstrip(".") or key
        parts = [part.split("[")[0] for part in name.split(".")]
        if "." not in path and (parts[0] in SHARED or set(parts[:-1]) & {"data", "terms"}):
            continue
        rows.append((f"`{name}`", f"`{kind}`", f"`{default}`", html.escape(meaning, quote=False)))
    return _table(("option", "type", "default", "meaning"), rows)


def metrics_table(patterns: str) -> str:
    """Rows of all metrics whose name fits one of the patterns, separated by blanks."""
    from rlhf_ray.run.metric_names import METRICS

    chosen = [metric for metric in METRICS if any(fnmatch.fnmatchcase(metric.name, p) for p in patterns.split())]
    rows = [(f"`{metric.name}`", metric.unit, html.escape(metric.text, quote=False)) for metric in chosen]
    return _table(("metric", "unit", "meaning"), rows)


def run_directory(_: str) -> str:
    """The layout of RUN: the docstring of rlhf_ray/run/directory.py without its first paragraph."""
    text = ast.get_docstring(ast.parse((ROOT / "rlhf_ray" / "run" / "directory.py").read_text())) or ""
    return text.partition("\n\n")[2]


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [f"| {' | '.join(cell for cell in row)} |" for row in rows]
    columns = list(head)
    return "\n".join([f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns), *lines]) if lines else ""


TABLES = {"options": options_table, "metrics": metrics_table, "run directory": run_directory}


def write_pages() -> None:
    """Writes every page, and the pictures, to build/docs. Raises Problem for a page that is not in the navigation."""
    files = sources()
    navigation = set(_leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    if missing := sorted(navigation ^ set(files)):
        raise Problem(f"mkdocs.yml: pages and `nav` differ: {', '.join(missing)}")
    shutil.rmtree(PAGES, ignore_errors=True)
    for page, file in files.items():
        target = PAGES / page
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(expand(file.read_text(), page, files))
    for picture in [*DOCS.rglob("*.svg"), *DOCS.rglob("*.css")]:
        shutil.copy(picture, PAGES / picture.relative_to(DOCS))


def _leaves(node: object) -> Iterable[str]:
    if isinstance(node, str):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _leaves(child)


class Page(HTMLParser):
    """What a built page loads, what it links to, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collects ids, links, and what a browser fetches by itself."""
        values = {name: value for name, value in attrs if value}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and "href" in values:
            self.loads.append(values["href"])
        elif "src" in values:
            self.loads.append(values["src"])


def check_site(site: Path) -> list[str]:
    """What is wrong with a built site: targets that are not there, and anything loaded from another host."""
    pages = {file: Page(file.read_text()) for file in sorted(site.rglob("*.html"))}
    problems = []
    for file, page in pages.items():
        name = file.relative_to(site)
        problems += [f"{name}: loads {url} from another host" for url in page.loads if urlsplit(url).netloc]
        for url in [*page.loads, *page.links]:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            root = site if parts.path.startswith("/") else file.parent
            target = Path(os.path.normpath(root / unquote(parts.path).lstrip("/"))) if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                problems.append(f"{name}: {url} has no target")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                problems.append(f"{name}: {url} has no such anchor")
    for style in site.rglob("*.css"):
        problems += [f"{style.name}: loads {u}" for u in re.findall(r"url\([\"']?(https?:[^)]*)\)", style.read_text())]
    return problems


def build() -> None:
    """Builds the site in build/site. Raises Problem."""
    write_pages()
    shutil.rmtree(SITE, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "zensical",
        "build",
        "--strict",
        "--clean",
        "--config-file",
        str(ROOT / "mkdocs.yml"),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode or "Warning" in result.stdout + result.stderr:
        raise Problem(f"zensical: {result.stdout}{result.stderr}")
    if problems := check_site(SITE):
        raise Problem("\n".join(problems))


if __name__ == "__main__":
    try:
        build()
    except Problem as problem:
        sys.exit(str(problem))
    print(f"open {SITE / 'index.html'}; search needs a web server: python -m http.server -d {SITE}")
