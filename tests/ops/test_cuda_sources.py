"""The CUDA source compiles for the GPUs we name, without spills, with few registers and without
atomics; no GPU needed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import kernel_report  # noqa: E402

NAMES = ["group_kernel<int32>", "group_kernel<int64>", "token_kernel"]


@pytest.fixture(scope="module", params=kernel_report.ARCHITECTURES)
def kernels(request, tmp_path_factory):
    nvcc = kernel_report.find_nvcc()
    if nvcc is None:
        assert os.environ.get("CERO_REQUIRE_NVCC") != "1", (
            "CERO_REQUIRE_NVCC=1 but no CUDA toolkit with nvcc was found"
        )
        pytest.skip("nvcc is not installed")
    return kernel_report.compile_for(request.param, tmp_path_factory.mktemp(request.param), nvcc)


def test_every_kernel_is_there(kernels):
    assert [kernel.name for kernel in kernels] == NAMES


def test_registers_and_spills(kernels):
    for kernel in kernels:
        assert 0 < kernel.registers <= kernel_report.MAX_REGISTERS, kernel
        assert kernel.spill_bytes == kernel.local_bytes == 0, kernel


def test_no_atomics(kernels):
    for kernel in kernels:
        assert kernel.atomics == 0, kernel


def test_tokens_are_written_16_bytes_at_a_time(kernels):
    assert kernels[-1].vector_stores > 0


def test_an_atomic_and_a_spill_would_be_seen():
    log = (
        "ptxas info    : Compiling entry function '_Z12token_kernelPf' for 'sm_80'\n"
        "    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n"
        "ptxas info    : Used 70 registers, used 1 barriers, 96 bytes smem\n"
    )
    code = [
        "redux.sync.add.s32 %r3, %r1, -1;",
        "@%p1 red.global.add.f32 [%rd1], %f1;",
        "atom.shared.add.u32 %r1, [%r2], 1;",
    ]
    ptx = (
        ".visible .entry _Z12token_kernelPf(\n.param .u64 p\n)\n{\n\t" + "\n\t".join(code) + "\n}\n"
    )
    (kernel,) = kernel_report.parse(log, ptx, "sm_80")
    assert (
        kernel.registers,
        kernel.spill_bytes,
        kernel.local_bytes,
        kernel.shared_bytes,
        kernel.atomics,
    ) == (70, 16, 8, 96, 2)


def test_where_nvcc_is_required_its_absence_fails():
    """CI sets CERO_REQUIRE_NVCC=1: these checks may then not be skipped."""
    environment = {
        **os.environ,
        "PATH": str(Path(sys.executable).parent),
        "CERO_REQUIRE_NVCC": "1",
        "PYTHONPATH": str(ROOT),
    }
    for name in ("CUDA_HOME", "CUDA_PATH"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "atomics"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode != 0
    assert "CERO_REQUIRE_NVCC=1 but no CUDA toolkit with nvcc was found" in done.stdout
