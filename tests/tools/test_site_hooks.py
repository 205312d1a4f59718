"""The site's hook: links of files become links of the site, lists are seen, notebooks are pages,
and nothing is fetched. The whole build is `make docs`."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import site_hooks  # noqa: E402

DOCS = ROOT / "docs"


@pytest.mark.parametrize(
    ("page", "link", "turned"),
    [
        ("docs/index.md", "../README.md", "repository/readme.md"),
        ("docs/index.md", "../CONTRIBUTING.md#docs", "repository/contributing.md#docs"),
        ("docs/index.md", "notebooks/scheduler.ipynb", "notebooks/scheduler.md"),
        ("docs/api/library.md", "../adapters.md", "../adapters.md"),
        ("docs/decisions/0041-the-docs-are-the-site-and-are-run.md", "../data.md", "../data.md"),
        ("README.md", "docs/data.md#rewards", "../data.md#rewards"),
        ("README.md", "LICENSE", "LICENSE"),
        ("docs/index.md", "no_such_page.md", "no_such_page.md"),  # for mkdocs to complain of
        ("docs/index.md", "https://example.org/a", "https://example.org/a"),
    ],
)
def test_a_link_of_files_is_one_of_the_site(page: str, link: str, turned: str) -> None:
    text = site_hooks.turned(f"See [it]({link}).", ROOT / page)
    assert text == f"See [it]({turned})."


def test_code_stays_as_it_is() -> None:
    block = "```python\ncall[0](data.md)\n- a\n```"
    text = site_hooks.turned(f"A [page](data.md):\n- one\n- two\n\n{block}\n", DOCS / "index.md")
    assert text == f"A [page](data.md):\n\n- one\n- two\n\n{block}\n"


def test_a_notebook_is_a_page_with_what_it_printed() -> None:
    page = site_hooks.page_of(DOCS / "notebooks" / "scheduler.ipynb")
    assert page.startswith("# The scheduler alone\n")
    assert "```python\nfrom cero_rl.scheduler import make_scheduler\n" in page
    assert "```text\ntorch was needed: False\n```" in page


@pytest.mark.parametrize(
    ("html", "fetches"),
    [
        ('<script src="https://cdn.example/x.js"></script>', True),
        ("<link rel=stylesheet href=//fonts.example/a.css>", True),
        ('<img alt="a" src="https://example.org/badge.svg">', True),
        ('<a href="https://arxiv.org/abs/2606.05606">the paper</a>', False),
        ('<script src="assets/bundle.js"></script><link href="site.css">', False),
    ],
)
def test_a_page_that_fetches_is_found(html: str, fetches: bool) -> None:
    assert bool(site_hooks.FETCHED.search(html)) is fetches


def test_the_navigation_is_read_whole() -> None:
    entries = site_hooks.nav_entries()
    assert {"index.md", "../README.md", "decisions/*", "notebooks/scheduler.ipynb"} <= set(entries)
    assert len(entries) == len(set(entries)) > 40
