"""What a trainer of bench_peers.py runs beside itself: CPU seconds, wall seconds and memory of its
process tree, step by step, and the wait for its turn.

The parent gives two pipes in PEER_PIPES. After each optimizer step the trainer writes a line and
waits for an answer before it begins the next, so of two trainers only one works at a time. Nothing
here imports a trainer.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PIPES = "PEER_PIPES"  # "write,read": file descriptors
OWN_END = "PEER_OWN_END"  # set where responses end as the model will
PROFILE = "PEER_PROFILE"  # a file for the operators of the second step, by their own CPU seconds
NEVER = 2**31 - 1  # an end token that no vocabulary has: every response has its full length
_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


def _children(pid: int) -> list[int]:
    """All descendants that live."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            direct = [int(word) for word in task.read_text().split()]
        except OSError:
            continue
        for child in direct:
            found += [child, *_children(child)]
    return found


def _cpu_seconds_of(pid: int) -> float:
    """Its own and those of its children that ended; 0 where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(ticks) for ticks in fields[11:15]) * _TICK_SECONDS


def _peak_mb_of(pid: int) -> float:
    """Largest resident size so far, in MB of 10**6 bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6


def _peaks() -> dict[str, float]:
    """Of the main process, and the sum over the tree."""
    own = _peak_mb_of(os.getpid())
    others = sum(_peak_mb_of(pid) for pid in _children(os.getpid()))
    return {"main_peak_mb": own, "peak_mb": own + others}


def tree_cpu_seconds() -> float:
    """Of this process and all it started."""
    ended = os.times()
    own = time.process_time() + ended.children_user + ended.children_system
    return own + sum(_cpu_seconds_of(pid) for pid in _children(os.getpid()))


class Meter:
    """One trainer's clocks. `ready` before the first step, `step_done` after each."""

    def __init__(self) -> None:
        write, read = (int(number) for number in os.environ[PIPES].split(","))
        self._write = os.fdopen(write, "w")
        self._read = os.fdopen(read)
        self._open = False  # a phase is being timed
        self._phases: dict[str, list[float]] = {}  # CPU and wall seconds
        self._numbers: dict[str, float] = {}
        self._cpu = self._wall = 0.0
        self._steps = 0
        self._profile: Any = None

    def timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its seconds added to `phase`; inside another phase they are that one's."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            if self._open:
                return function(*arguments, **keywords)
            self._open = True
            cpu, wall = time.process_time(), time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                self._open = False
                total = self._phases.setdefault(phase, [0.0, 0.0])
                total[0] += time.process_time() - cpu
                total[1] += time.perf_counter() - wall

        return call

    def count(self, **numbers: float) -> None:
        """Add to this step's numbers."""
        for name, value in numbers.items():
            self._numbers[name] = self._numbers.get(name, 0) + value

    def ready(self) -> None:
        """Start-up is over; returns when the first step may begin."""
        self._tell({"cpu_seconds": tree_cpu_seconds(), **_peaks()})

    def step_done(self) -> None:
        """Tell what the step took; returns when the next may begin. Ends the process where the
        parent wants no more."""
        cpu, wall = tree_cpu_seconds() - self._cpu, time.perf_counter() - self._wall
        self._steps += 1
        self._watch_operators()
        self._tell(
            {
                "cpu_seconds": cpu,
                "wall_seconds": wall,
                "phases": self._phases,
                **_peaks(),
                **self._numbers,
            }
        )

    def _watch_operators(self) -> None:
        """Profile the second step, where that is asked for."""
        path = os.environ.get(PROFILE)
        if path and self._steps == 1:
            import torch

            self._profile = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=False
            )
            self._profile.start()
        elif path and self._steps == 2 and self._profile is not None:
            self._profile.stop()
            table = self._profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25)
            Path(path).write_text(table)
            self._profile = None

    def _tell(self, line: dict[str, Any]) -> None:
        self._write.write(json.dumps(line) + "\n")
        self._write.flush()
        if self._read.readline() != "go\n":
            os._exit(0)
        self._phases, self._numbers = {}, {}
        self._cpu, self._wall = tree_cpu_seconds(), time.perf_counter()
