"""Builds the native operators ahead of time: `_C` (schemas and CPU kernels, always) and `_C_cuda` (where nvcc is found).

CERO_CUDA=auto|0|1: build the CUDA library where nvcc is found (default), never, or fail without it.
TORCH_CUDA_ARCH_LIST is honoured; the default is "8.0;9.0+PTX". Metadata is in pyproject.toml.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup

try:
    import torch  # noqa: F401
    from torch.utils import cpp_extension
except ImportError:
    sys.exit("cero_rl builds against the installed torch: pip install torch==2.13.0 first, then pip install --no-build-isolation -e .")

DEFINES = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]


def find_cuda_home() -> str | None:
    """The toolkit nvcc belongs to. A CPU build of torch never looks for one, so it must be told."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        home = os.environ.get(variable)
        if home and (Path(home) / "bin" / "nvcc").exists():
            return home
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    candidates = [Path(nvcc).resolve().parent.parent, Path("/usr/local/cuda")]
    return next((str(home) for home in candidates if (home / "include" / "cuda_runtime.h").exists()), None)


def extensions() -> list[object]:
    common = ["-O3", "-std=c++17", "-ffp-contract=off", *DEFINES]
    found: list[object] = [
        cpp_extension.CppExtension("cero_rl.ops._C", ["csrc/ops_cpu.cpp"], extra_compile_args={"cxx": common}, py_limited_api=True)
    ]
    wanted = os.environ.get("CERO_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        sys.exit(f"CERO_CUDA: got {wanted!r}, wanted auto, 0 or 1")
    home = find_cuda_home() if wanted != "0" else None
    if home is None:
        if wanted == "1":
            sys.exit("CERO_CUDA=1 but no CUDA toolkit was found; set CUDA_HOME to the folder that has bin/nvcc")
        return found
    cpp_extension.CUDA_HOME = home
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    cuda = cpp_extension.CUDAExtension(
        "cero_rl.ops._C_cuda",
        ["csrc/ops_cuda.cu"],
        include_dirs=[str(Path(home) / "include")],
        extra_compile_args={"cxx": common, "nvcc": ["-O3", "-std=c++17", "-fmad=false", "-DUSE_CUDA", *DEFINES]},
        py_limited_api=True,
    )
    cuda.optional = wanted == "auto"  # a toolkit that does not fit must not break an install that can do without it
    return [*found, cuda]


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": cpp_extension.BuildExtension.with_options(use_ninja=False)},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
