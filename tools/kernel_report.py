"""What nvcc makes of the CUDA kernels, without a GPU: registers, spills, shared memory, atomics,
and the widths of loads and stores.

    python tools/kernel_report.py        the table of docs/kernel.md; `make kernel-report` is this

The flags are those of setup.py, so the report is about the code that is installed.
tests/ops/test_cuda_sources.py holds the limits.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
MAX_REGISTERS = 64


@dataclass(frozen=True)
class Kernel:
    """One entry point for one architecture."""

    name: str
    architecture: str
    registers: int  # a thread
    spill_bytes: int
    shared_bytes: int  # a block
    atomics: int  # atom.* and red.* in the PTX
    vector_stores: int  # 16 bytes, in the PTX
    local_bytes: int  # stack frame


def build_settings() -> ModuleType:
    """setup.py as a module; it sets up nothing unless it is run."""
    spec = importlib.util.spec_from_file_location("cero_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_nvcc() -> Path | None:
    home = build_settings().find_cuda_home()
    return None if home is None else Path(home) / "bin" / "nvcc"


def readable(symbol: str) -> str:
    """The kernel's name and, where it is a template, the width of its offsets."""
    name = "group_kernel" if "group_kernel" in symbol else "token_kernel"
    return name if name == "token_kernel" else f"{name}<{'int32' if 'Ii' in symbol else 'int64'}>"


def compile_for(architecture: str, folder: Path, nvcc: Path) -> list[Kernel]:
    """Compiles csrc/ops_cuda.cu for one architecture. Raises RuntimeError with the compiler's words
    where that fails."""
    flags = [flag for flag in build_settings().NVCC if not flag.startswith("--threads")]
    include = [f"-I{path}" for path in [*include_paths(), nvcc.parent.parent / "include"]]
    command = [
        str(nvcc),
        "-cubin",
        str(ROOT / "csrc" / "ops_cuda.cu"),
        "-o",
        str(folder / "ops.cubin"),
        *flags,
        f"-arch={architecture}",
        "-Xptxas",
        "-v",
        "--keep",
        f"--keep-dir={folder}",
        *include,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    if done.returncode != 0:
        raise RuntimeError(f"nvcc failed for {architecture}:\n{done.stderr[-2000:]}")
    (ptx_file,) = folder.glob("*.ptx")
    return parse(done.stdout + done.stderr, ptx_file.read_text(encoding="utf-8"), architecture)


def parse(log: str, ptx: str, architecture: str) -> list[Kernel]:
    """ptxas -v's log and the PTX, entry by entry."""
    body = {
        match[1]: match[2]
        for match in re.finditer(r"\.entry (\w+)\((.*?)^}", ptx, re.MULTILINE | re.DOTALL)
    }
    kernels = []
    for part in log.split("Compiling entry function '")[1:]:
        symbol = part.split("'", 1)[0]
        code = re.findall(r"^\s*(?:@!?%p\d+\s+)?([a-z][\w.:]*)", body[symbol], re.MULTILINE)
        opcodes = Counter(opcode for opcode in code)
        numbers = {
            key: sum(int(n) for n in re.findall(pattern, part))
            for key, pattern in {
                "registers": r"Used (\d+) registers",
                "spill_bytes": r"(\d+) bytes spill",
                "shared_bytes": r"(\d+) bytes smem",
                "local_bytes": r"(\d+) bytes stack frame",
            }.items()
        }
        # `red.` is a reduction in memory; redux.sync is a warp's, without memory and deterministic.
        atomics = sum(n for opcode, n in opcodes.items() if re.match(r"(atom|red)\.", opcode))
        vectors = sum(
            n for opcode, n in opcodes.items() if re.match(r"st\.global\.v4\.(f|b|u)32", opcode)
        )
        kernels.append(
            Kernel(
                readable(symbol), architecture, atomics=atomics, vector_stores=vectors, **numbers
            )
        )
    return sorted(kernels, key=lambda kernel: kernel.name)


def main() -> int:
    nvcc = find_nvcc()
    if nvcc is None:
        print(
            "kernel-report: no CUDA toolkit with nvcc was found; set CUDA_HOME or put nvcc "
            "on the PATH",
            file=sys.stderr,
        )
        return 1
    release = re.search(
        r"release ([\d.]+)",
        subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, check=True).stdout,
    )
    version = release[1] if release else "of unknown version"
    print(
        f"nvcc {version}, flags of setup.py; limits: {MAX_REGISTERS} registers, 0 spilled, "
        "0 atomics\n"
    )
    print(
        "| kernel | architecture | registers | spilled bytes | stack bytes | shared bytes "
        "| atom/red in PTX | 16-byte stores in PTX |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    within = True
    for architecture in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            for k in compile_for(architecture, Path(folder), nvcc):
                numbers = (
                    k.registers,
                    k.spill_bytes,
                    k.local_bytes,
                    k.shared_bytes,
                    k.atomics,
                    k.vector_stores,
                )
                print(f"| {k.name} | {k.architecture} |", *(f"{n} |" for n in numbers))
                within &= k.registers <= MAX_REGISTERS and k.spill_bytes == 0 and k.atomics == 0
    print("\nwithin the limits" if within else "\nNOT within the limits")
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
