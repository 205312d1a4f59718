"""Timing and counting for the benchmarks: median and spread on CPU and GPU, launches,
synchronisations, copy bandwidth, the machine.

No figure is computed from a data sheet: a share of the bandwidth is a share of what a copy reaches
on the same GPU in the same run.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
Action = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    median_seconds: float
    p20_seconds: float
    p80_seconds: float
    repeats: int


def _timing(seconds: list[float]) -> Timing:
    p20, median, p80 = (float(x) for x in np.percentile(seconds, (20, 50, 80)))
    return Timing(median, p20, p80, len(seconds))


def time_on_cpu(action: Action, *, budget_seconds: float, least: int, most: int) -> Timing:
    """One unmeasured call, then calls until the budget is spent, but `least` to `most` of them."""
    action()
    seconds: list[float] = []
    while len(seconds) < least or (sum(seconds) < budget_seconds and len(seconds) < most):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return _timing(seconds)


def time_on_gpu(action: Action, *, budget_seconds: float, least: int, most: int) -> Timing:
    """As above, by events on the stream: the host runs ahead, so the time of a call counts only
    where the GPU waits for it."""
    for _ in range(2):
        action()
    torch.cuda.synchronize()
    started = time.perf_counter()
    action()
    torch.cuda.synchronize()
    repeats = int(np.clip(budget_seconds / max(time.perf_counter() - started, 1e-6), least, most))
    marks = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(repeats)
    ]
    for begin, end in marks:
        begin.record()
        action()
        end.record()
    torch.cuda.synchronize()
    return _timing([begin.elapsed_time(end) / 1e3 for begin, end in marks])


def timer(device: str) -> Callable[..., Timing]:
    return time_on_gpu if device == "cuda" else time_on_cpu


def copy_bandwidth(device: str, size_bytes: int = 1 << 30) -> float:
    """Bytes a second, read and written, of a device-to-device copy of 1 GiB."""
    source = torch.empty(size_bytes, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    took = timer(device)(lambda: target.copy_(source), budget_seconds=0.5, least=10, most=100)
    return 2 * size_bytes / took.median_seconds


def count_launches(action: Action) -> int:
    """Kernels, fills and copies that one call puts on the GPU."""
    count = 0
    for _ in range(2):  # the first profile of a process may come too late for its events
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            action()
            torch.cuda.synchronize()
        names = [event.name for event in profile.events() or [] if event.device_type.name == "CUDA"]
        count = sum("Sync" not in name and "Activity Buffer" not in name for name in names)
    return count


def count_syncs(action: Action) -> int:
    """Times one call makes the host wait for the GPU, as torch's own debug mode counts them."""
    action()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            action()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30
        )
    except FileNotFoundError:
        return ""
    return (
        done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else ""
    )


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def commit() -> str:
    """Short hash, with + where files differ from it; CERO_COMMIT where this is no git checkout."""
    head = _first_line("git", "rev-parse", "--short", "HEAD")
    if not head:
        return os.environ.get("CERO_COMMIT", "unknown")
    return head + (
        "+" if _first_line("git", "status", "--porcelain", "--untracked-files=no") else ""
    )


def machine() -> dict[str, Any]:
    """Where and with what a row was measured."""
    found: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "load": round(os.getloadavg()[0], 1),
    }
    if torch.cuda.is_available():
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return found
