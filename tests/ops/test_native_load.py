"""A library that is missing or does not fit is named together with its remedy."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cero_rl.ops
from cero_rl.ops import build_info

OPS = Path(cero_rl.ops.__file__).parent


@pytest.fixture
def loader(tmp_path):
    """A copy of _load.py alone in a folder, run in a process of its own; returns (exit status, last
    line of output)."""

    def run(*libraries: Path, before: str = "") -> tuple[int, str]:
        shutil.copy(OPS / "_load.py", tmp_path / "_load.py")
        for library in libraries:
            shutil.copy(library, tmp_path / library.name)
        code = f"import torch\n{before}\nimport _load\nprint(_load.build_info())"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        return done.returncode, (done.stdout + done.stderr).strip().splitlines()[-1]

    return run


def cpu_library() -> Path:
    return OPS / build_info().cpu_library


def test_missing_library_names_the_build_command(loader):
    status, line = loader()
    assert status != 0
    assert line.startswith("ImportError")
    assert "pip install --no-build-isolation -e ." in line


def test_cuda_library_that_does_not_load_leaves_the_cpu_ops(loader, tmp_path):
    broken = tmp_path / "elsewhere" / "_C_cuda.abi3.so"
    broken.parent.mkdir()
    broken.write_bytes(b"not a library")
    status, line = loader(cpu_library(), broken, before="torch.cuda.is_available = lambda: True")
    assert status == 0
    assert "_C_cuda.abi3.so does not load into torch" in line


def test_without_a_cuda_library_the_note_says_so(loader):
    status, line = loader(cpu_library())
    assert status == 0
    assert "CUDA library not built" in line
