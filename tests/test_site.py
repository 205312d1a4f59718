"""What the documentation shows beside its text: the API reference is whole, the notebooks print
what they show, the Dockerfile passes its linter and copies what there is."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

import cero_rl.scheduler

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
PUBLIC = [
    name
    for page in sorted((DOCS / "api").glob("*.md"))
    for name in re.findall(r"(?m)^::: (\S+)$", page.read_text(encoding="utf-8"))
]


@cache
def tree_of(module: str) -> ast.Module | None:
    place = ROOT / module.replace(".", "/")
    files = (place.with_suffix(".py"), place / "__init__.py")
    path = next((path for path in files if path.is_file()), None)
    return None if path is None else ast.parse(path.read_text(encoding="utf-8"))


def said_of(name: str) -> str:
    """The docstring of a name, followed to where it is defined, without importing anything."""
    module, _, last = name.rpartition(".")
    tree = tree_of(module)
    assert tree is not None, f"{name}: {module} is no module"
    for node, behind in zip(tree.body, [*tree.body[1:], None]):
        if isinstance(node, ast.ImportFrom) and last in [alias.name for alias in node.names]:
            return said_of(f"{node.module}.{last}")
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == last:
            return ast.get_docstring(node) or ""
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if last in [t.id for t in targets if isinstance(t, ast.Name)]:
                if isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant):
                    return str(behind.value.value)
                return ""
    raise AssertionError(f"{name} is not defined in {module}")


def test_every_public_name_says_what_it_is() -> None:
    assert len(PUBLIC) == len(set(PUBLIC)) > 80
    short = [name for name in PUBLIC if len(said_of(name).split()) < 6]
    assert not short, f"public names need a docstring worth reading: {short}"


def test_every_name_of_the_scheduler_is_in_the_reference() -> None:
    named = {name.rpartition(".")[2] for name in PUBLIC}
    assert set(cero_rl.scheduler.__all__) - named == set()


RUNNER = """
import contextlib, io, json, pathlib, sys
names, shown = {}, []
for cell in json.loads(pathlib.Path(sys.argv[1]).read_text("utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec("".join(cell["source"]), names)
        shown.append(said.getvalue())
print(json.dumps(shown))
"""


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_prints_what_it_shows(notebook: Path) -> None:
    """Without torch: the scheduler's last cell says whether it was imported."""
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(notebook)],
        cwd=notebook.parent,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    shown = [
        "".join("".join(output["text"]) for output in cell["outputs"])
        for cell in cells
        if cell["cell_type"] == "code"
    ]
    assert json.loads(done.stdout) == shown
    assert sum(map(bool, shown)) >= 2


def test_the_dockerfile_passes_its_linter() -> None:
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("no hadolint here; it comes with the extra dev")
    done = subprocess.run(
        [hadolint, "--no-color", "Dockerfile"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_gets_what_it_copies() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    left_out = [
        line.removeprefix("**/")
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    copied = [
        source
        for line in re.findall(r"(?m)^COPY (.*)$", text)
        for source in [word for word in line.split() if not word.startswith("--")][:-1]
    ]
    assert copied
    needed = [*copied, "README.md", "LICENSE", "setup.py", "csrc", "cero_rl", "recipes", "tools"]
    for name in needed:
        assert (ROOT / name).exists(), name
        assert not any(fnmatch(name, pattern) for pattern in left_out), name
    stages = re.findall(r"RUN make (\S+)", text)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [
        stage for stage in stages if stage.replace(".venv", "$(VENV)") + ":" not in makefile
    ] == []
    users = re.findall(r"(?m)^USER (\S+)$", text)
    assert users, "the image would run as root"
    assert users[-1] not in ("root", "0")
