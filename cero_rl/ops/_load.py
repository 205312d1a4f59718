"""Loads the native operator libraries that setup.py built. A missing `_C` is an ImportError that
names the build command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

_HERE = Path(__file__).parent
_BUILD = "pip install --no-build-isolation -e ."


@dataclass(frozen=True)
class BuildInfo:
    """What was found and loaded; `cuda_note` says why the CUDA library is not in use, if it is
    not."""

    cpu_library: str
    cuda_library: str | None
    cuda_note: str

    def __str__(self) -> str:
        return f"{self.cpu_library}; {self.cuda_library or self.cuda_note}"


def _library(stem: str) -> Path | None:
    return next(iter(sorted(_HERE.glob(f"{stem}.*so"))), None)


def _load() -> BuildInfo:
    cpu, cuda = _library("_C"), _library("_C_cuda")
    if cpu is None:
        raise ImportError(
            "cero_rl's native operators are not built: this package was built where no torch is "
            f"installed; run `{_BUILD}` in the project's folder, beside torch"
        )
    try:
        torch.ops.load_library(str(cpu))
    except OSError as error:
        message = (
            f"{cpu.name} does not load into torch {torch.__version__} ({error}); build it "
            f"again: `{_BUILD}`"
        )
        raise ImportError(message) from error
    if cuda is None:
        return BuildInfo(cpu.name, None, "CUDA library not built")
    if not torch.cuda.is_available():
        return BuildInfo(cpu.name, None, f"{cuda.name} built, not loaded: torch sees no GPU")
    try:
        torch.ops.load_library(str(cuda))
    except OSError as error:  # CPU tensors still work; CUDA tensors raise, with this note
        return BuildInfo(
            cpu.name, None, f"{cuda.name} does not load into torch {torch.__version__} ({error})"
        )
    return BuildInfo(cpu.name, cuda.name, "")


_INFO = _load()


def build_info() -> BuildInfo:
    """Which builds of the native operators this process loaded, and why CUDA's is not among them;
    for `cero-rl doctor`."""
    return _INFO
