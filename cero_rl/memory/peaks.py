"""The most memory that this process held in each phase of a run, measured.

On a GPU: what torch has allocated there, by its own counter; what vLLM's graphs, NCCL and the
driver hold is not in it, the device's use at the end of a phase is. On a CPU: the resident set, by
the kernel's mark of its peak, which a process may set back (Linux; elsewhere nothing is told).
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_STATUS, _MARKS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): VmHWM becomes VmRSS


class Peaks:
    """Bytes by phase, since they were last taken. Phases may lie inside others: each is told with
    all that happened in it."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._bytes: dict[str, int] = {}
        self._open: list[str] = []
        self._highest = 0
        self._works = self._reset()
        self.before = self._peak() if self._works else 0  # nothing of the run is there yet

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The block is part of `name`."""
        self._mark()
        self._open.append(name)
        try:
            yield
        finally:
            self._mark()
            self._open.pop()

    def note(self, name: str) -> None:
        """What happened since the last phase was `name`."""
        self._open.append(name)
        self._mark()
        self._open.pop()

    def take(self) -> dict[str, int]:
        """Peak of each phase in bytes; they begin anew. Empty where it cannot be told."""
        self._mark()
        taken, self._bytes = self._bytes, {}
        return taken if self._works else {}

    def device_used(self) -> int | None:
        """Bytes of the GPU that are in use, by everyone; None on a CPU."""
        if self._cuda is None:
            return None
        free, total = torch.cuda.mem_get_info(self._cuda)
        return total - free

    def resident(self) -> int:
        """Most bytes of host memory that this process held so far."""
        if self._cuda is None:
            self._mark()
            return self._highest
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _mark(self) -> None:
        """The peak since the last mark belongs to every phase that is open."""
        peak = self._peak()
        self._highest = max(self._highest, peak)
        for name in self._open:
            self._bytes[name] = max(self._bytes.get(name, 0), peak)
        if self._works:
            self._reset()

    def _reset(self) -> bool:
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
            return True
        try:
            _MARKS.write_text(_RESET_PEAK)
        except OSError:
            return False
        return True

    def _peak(self) -> int:
        if self._cuda is not None:
            return torch.cuda.max_memory_allocated(self._cuda)
        try:
            lines = _STATUS.read_text().splitlines()
        except OSError:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
