"""The CUDA source compiles for the GPUs we name, without spills, with few registers and without atomics; no GPU needed."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).resolve().parents[2]
NVCC = shutil.which("nvcc")
REQUIRED = os.environ.get("CERO_REQUIRE_NVCC") == "1"


@pytest.fixture(scope="module", params=["sm_80", "sm_90", "sm_100"])
def compiled(request, tmp_path_factory):
    if NVCC is None:
        assert not REQUIRED, "CERO_REQUIRE_NVCC=1 but nvcc is not on the PATH"
        pytest.skip("nvcc is not installed")
    out = tmp_path_factory.mktemp(request.param)
    include = [f"-I{path}" for path in include_paths()]
    # One architecture goes through the host compiler as well; device code alone is twice as fast for the others.
    stage = "-c" if request.param == "sm_80" else "-cubin"
    command = [
        NVCC, stage, str(ROOT / "csrc" / "ops_cuda.cu"), "-o", str(out / "ops.out"), "-std=c++17", "-O3", "-fmad=false",
        "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY", f"-arch={request.param}",
        "-Xptxas", "-v", "--keep", f"--keep-dir={out}", *include,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    ptx = "".join(p.read_text() for p in out.glob("*.ptx"))
    return done.stdout + done.stderr, ptx


def test_registers_and_spills(compiled):
    report, _ = compiled
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", report)]
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill", report)]
    assert len(registers) == 3  # groups with i32 and i64 offsets, tokens
    assert max(registers) <= 64, report
    assert sum(spills) == 0, report


def test_no_atomics(compiled):
    _, ptx = compiled
    assert ptx.count(".entry") == 3
    # `red.` is a global-memory reduction; redux.sync is a warp's and is deterministic.
    assert not re.search(r"^\s*(@%p\d+\s+)?(atom|red)\.", ptx, re.MULTILINE)
