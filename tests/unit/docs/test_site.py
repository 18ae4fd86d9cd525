"""The documentation's site builds, and its build finds planted faults."""

import html
import importlib.util
import sys

import pytest

from rlhf_ray.run.metric_names import METRICS
from tests.helpers import ROOT

SPEC = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
build = importlib.util.module_from_spec(SPEC)
sys.modules["docs_build"] = build
SPEC.loader.exec_module(build)


@pytest.fixture(scope="module")
def site():
    """The built site; a warning, a broken link or a picture that is not there fails the build."""
    build.build()
    return build.SITE


def test_every_page_is_built(site):
    pages = {str(file.relative_to(site).with_suffix(".md")) for file in site.rglob("*.html")}
    assert pages - {"404.md"} == set(build.sources())


def test_options_come_from_the_config(site):
    page = (site / "algorithms" / "ppo.html").read_text()
    assert "<code>value_clip</code>" in page
    assert "GAE's lambda." in page


def test_the_glossary_has_every_metric(site):
    page = html.unescape((site / "reference" / "metrics.html").read_text())
    assert not [metric.name for metric in METRICS if f"<code>{metric.name}</code>" not in page]


def test_the_run_directory_has_a_table(site):
    page = (site / "reference" / "run_directory.html").read_text()
    assert "<td><code>metrics.jsonl</code></td>" in page


def test_formulas_need_no_script(site):
    assert "<math " in (site / "algorithms" / "grpo.html").read_text()


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('<script src="https://cdn.example/a.js"></script>', "loads https://cdn.example/a.js from another host"),
        ('<link rel="stylesheet" href="//fonts.example/a.css">', "loads //fonts.example/a.css from another host"),
        ('<img src="gone.svg">', "gone.svg has no target"),
        ('<a href="gone.html">x</a>', "gone.html has no target"),
        ('<a href="other.html#gone">x</a>', "other.html#gone has no such anchor"),
        ('<a href="https://example.org">x</a><a href="other.html#there">x</a>', None),
    ],
)
def test_faults_of_a_built_page_are_found(tmp_path, body, problem):
    (tmp_path / "page.html").write_text(body)
    (tmp_path / "other.html").write_text('<h1 id="there"></h1>')
    problems = build.check_site(tmp_path)
    assert problems == ([f"page.html: {problem}"] if problem else [])


def test_a_style_sheet_loads_nothing_from_another_host(tmp_path):
    (tmp_path / "a.css").write_text("@font-face{src:url(https://fonts.example/a.woff2)}")
    assert build.check_site(tmp_path) == ["a.css: loads https://fonts.example/a.woff2"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a](gone.md)", "the link to gone.md has no target"),
        ("<!-- options: ppo.no_such_key -->", "selects nothing"),
    ],
)
def test_faults_of_a_source_page_are_found(text, problem):
    with pytest.raises(build.Problem, match=problem):
        build.expand(text, "index.md", build.sources())


@pytest.mark.parametrize(
    ("text", "page", "expanded"),
    [
        ("[a](concepts.md#x)", "index.md", "[a](concepts.md#x)"),
        ("[a](../../cluster/README.md)", "guides/data.md", "[a](../operations/cluster.md)"),
        ("[the job](../jobs/rl/ppo.yaml)", "index.md", "the job (`jobs/rl/ppo.yaml`)"),
        ("[ppo.yaml](rl/ppo.yaml)", "project/jobs.md", "`jobs/rl/ppo.yaml`"),
        ("`[a](gone.md)`", "index.md", "`[a](gone.md)`"),
        ("```\n[a](gone.md)\n```", "index.md", "```\n[a](gone.md)\n```"),
        ("[a](https://example.org)", "index.md", "[a](https://example.org)"),
    ],
)
def test_links_lead_inside_the_site_or_name_a_file(text, page, expanded):
    assert build.expand(text, page, build.sources()) == expanded


def test_a_job_page_leaves_out_the_sections_that_all_jobs_share():
    table = build.options_table("sft")
    assert "`neftune_alpha`" in table
    assert "`evaluate.best`" in table
    assert "`learner.lr`" not in table
    assert "`evaluate.data.path`" not in table
    assert "`lr`" in build.options_table("sft.learner")
