"""Puts the recipes into the package, and builds the native operators ahead of time where torch is
installed: `_C` (schemas and CPU kernels, always) and `_C_cuda` (where nvcc is found). Without torch
the package is plain Python: scheduler, simulator and what reads a run.

CERO_CUDA=auto|0|1: build the CUDA library where nvcc is found, and go on without it if that
fails (default); never; or fail without it. TORCH_CUDA_ARCH_LIST is honoured; the default is
"8.0;9.0+PTX". Metadata is in pyproject.toml.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

try:
    import torch
    from torch.utils import cpp_extension

    BuildExtension = cpp_extension.BuildExtension
except ImportError:
    torch = cpp_extension = None
    BuildExtension = build_ext

DEFINES = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]
COMMON = ["-O3", "-g0", "-std=c++17", "-ffp-contract=off", *DEFINES]
NVCC = ["-O3", "-std=c++17", "-fmad=false", "--threads=2", "-DUSE_CUDA", *DEFINES]
# without them an edit of a header would rebuild nothing
HEADERS = ["csrc/group_math.h", "csrc/kernels.cuh"]
WANTED = os.environ.get("CERO_CUDA", "auto")


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
    return next(
        (str(home) for home in candidates if (home / "include" / "cuda_runtime.h").exists()), None
    )


def cuda_extension(home: str) -> Extension:
    cpp_extension.CUDA_HOME = home
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    cuda = cpp_extension.CUDAExtension(
        "cero_rl.ops._C_cuda",
        ["csrc/ops_cuda.cu"],
        depends=HEADERS,
        include_dirs=[str(Path(home) / "include")],
        extra_compile_args={"cxx": COMMON, "nvcc": NVCC},
        py_limited_api=True,
    )
    # a CPU torch has no such libraries: the result proves the build and cannot be loaded
    if torch.version.cuda is None:
        cuda.libraries = [name for name in cuda.libraries if name not in ("c10_cuda", "torch_cuda")]
    cuda.optional = WANTED == "auto"
    return cuda


def extensions() -> list[Extension]:
    if torch is None:
        if WANTED == "1":
            sys.exit(
                "CERO_CUDA=1 but torch is not installed here: install it first, then pip install "
                "--no-build-isolation -e ."
            )
        print("cero_rl: no torch where this is built, so no native operators; training needs them")
        return []
    cpu = cpp_extension.CppExtension(
        "cero_rl.ops._C",
        ["csrc/ops_cpu.cpp"],
        depends=HEADERS,
        extra_compile_args={"cxx": COMMON},
        py_limited_api=True,
    )
    if WANTED not in ("auto", "0", "1"):
        sys.exit(f"CERO_CUDA: got {WANTED!r}, wanted auto, 0 or 1")
    home = find_cuda_home() if WANTED != "0" else None
    if home is None and WANTED == "1":
        sys.exit(
            "CERO_CUDA=1 but no CUDA toolkit was found; set CUDA_HOME to the folder that "
            "has bin/nvcc"
        )
    return [cpu] if home is None else [cpu, cuda_extension(home)]


class BuildWithRecipes(build_py):
    """`recipes/` of the checkout is `cero_rl/recipes/` of an installed package."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "cero_rl" / "recipes"
            shutil.copytree("recipes", target, dirs_exist_ok=True, ignore=_no_caches)


_no_caches = shutil.ignore_patterns("__pycache__", "*.pyc")


class Build(BuildExtension):
    """A toolkit that does not fit must not break an install that can do without it.

    setuptools forgives an `optional` extension that fails to compile, but torch compares CUDA
    versions before it compiles.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **({} if torch is None else {**kwargs, "use_ninja": False}))

    def build_extensions(self) -> None:
        try:
            super().build_extensions()
        except RuntimeError as error:
            kept = [extension for extension in self.extensions if not extension.optional]
            if len(kept) == len(self.extensions):
                raise
            self.warn(
                f"the CUDA library is not built ({error}); CPU tensors work, CUDA tensors will not"
            )
            self.extensions = kept
            super().build_extensions()


if __name__ == "__main__":  # build tools run it as such; tools/kernel_report.py reads the flags
    native = extensions()
    setup(
        ext_modules=native,
        cmdclass={"build_ext": Build, "build_py": BuildWithRecipes},
        options={"bdist_wheel": {"py_limited_api": "cp311"}} if native else {},
    )
