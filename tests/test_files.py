"""House rules on the files themselves: size, no machine of ours named anywhere, docs that are
current."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = {"cero_rl": 460, "csrc": 400}  # 350 are a question: is it one purpose?
MAX_LINES_BESIDE = 480  # tests and tools: tables of cases are long
SKIP_DIRS = {
    ".git",
    ".venv",
    "build",
    "dist",
    "runs",
    ".cache",
    "__pycache__",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
}
TEXT = {
    ".py",
    ".md",
    ".toml",
    ".yaml",
    ".yml",
    ".txt",
    ".cfg",
    ".sh",
    ".cu",
    ".cuh",
    ".cpp",
    ".h",
    ".json",
    "",
}
# Written in pieces, so that this file does not find itself.
HOSTS = [
    "pypi" + r"\.org",
    "pythonhosted" + r"\.org",
    "download" + r"\.pytorch\.org",
    "extra-" + "index-url",
    "find-" + "links",
]
PLACES = ["/" + r"work/(main|shared)\b", "/" + r"tmp/probe\b", "/" + r"home/\w+", "/" + r"root/"]


def our_files() -> list[Path]:
    """Tracked files and new ones that git does not ignore; without git, everything outside build
    and run directories."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if listed.returncode == 0 and listed.stdout:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        paths = [
            path for path in ROOT.rglob("*") if not SKIP_DIRS & set(path.relative_to(ROOT).parts)
        ]
    return [
        path
        for path in paths
        if path.is_file() and path.suffix in TEXT and "assets" not in path.parts
    ]


FILES = our_files()


def test_source_files_stay_short() -> None:
    long = {}
    for path in FILES:
        if path.suffix in {".py", ".cu", ".cuh", ".cpp", ".h"}:
            lines = len(path.read_text(encoding="utf-8").splitlines())
            name = path.relative_to(ROOT)
            if lines > MAX_LINES.get(name.parts[0], MAX_LINES_BESIDE):
                long[str(name)] = lines
    assert not long, f"too long; does each have one purpose? {long}"


def test_no_line_is_wider_than_the_page() -> None:
    wide = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in FILES
        if path.suffix == ".py"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 100
    ]
    assert not wide


@pytest.mark.parametrize("pattern", HOSTS + PLACES)
def test_no_machine_is_named(pattern: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in FILES
        for number, line in enumerate(
            path.read_text(encoding="utf-8", errors="replace").splitlines(), 1
        )
        if re.search(pattern, line)
    ]
    assert not found, found


def test_checkout_path_is_nowhere() -> None:
    if len(ROOT.parts) < 3:
        pytest.skip("the checkout path is too short to search for")
    found = [
        str(path.relative_to(ROOT))
        for path in FILES
        if str(ROOT) in path.read_text(encoding="utf-8", errors="replace")
    ]
    assert not found, found


def test_configuration_page_is_current() -> None:
    done = subprocess.run(
        [sys.executable, "tools/make_config_docs.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr


def test_every_page_of_the_docs_is_on_the_map() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = [
        path.relative_to(ROOT / "docs").as_posix()
        for path in FILES
        if path.suffix == ".md" and path.is_relative_to(ROOT / "docs")
    ]
    assert [page for page in pages if page != "index.md" and f"({page})" not in index] == []


def test_every_page_of_the_docs_is_in_the_sites_navigation() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    from site_hooks import nav_entries, source_of

    named = {source_of(entry) for entry in nav_entries()}
    lost = [
        path.relative_to(ROOT).as_posix()
        for path in [*(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("*.ipynb")]
        if path.parent.name != "decisions" and path not in named
    ]
    assert not lost, f"not in the navigation; add a line under nav in mkdocs.yml: {lost}"
    absent = [str(path) for path in named if "*" not in path.name and not path.is_file()]
    assert not absent, f"mkdocs.yml names what is not there: {absent}"


def test_links_of_the_docs_lead_somewhere() -> None:
    pages = [path for path in FILES if path.suffix == ".md"]
    dead = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#:\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert not dead, dead


def test_lock_pins_every_direct_dependency() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = (
        project["dependencies"]
        + extras["train"]
        + extras["report"]
        + extras["view"]
        + extras["procedural"]
        + [d for d in extras["dev"] if not d.startswith("cero_rl")]
    )
    pins = [
        line
        for line in (ROOT / "requirements" / "lock.txt").read_text(encoding="utf-8").splitlines()
        if line and line[0] != "#"
    ]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in pins), (
        "wanted name==version, no local version"
    )
    normal = {re.sub(r"[-_.]+", "-", pin.split("==")[0]).lower() for pin in pins}
    missing = [
        d
        for d in wanted
        if re.sub(r"[-_.]+", "-", re.split(r"[<>=\[]", d)[0]).lower() not in normal
    ]
    assert not missing, missing
