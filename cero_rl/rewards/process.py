"""A process that runs a user's code, with its pipes: it can be killed with all it started, so that
no code can hang, crash or fill the trainer. One JSON object a line each way; no pickles, so what it
answers is data. `rewards/worker.py` and `environments/worker.py` are what runs in it."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

BOOT_SECONDS = 120.0  # imports of the user's file
_REPLY_LIMIT_BYTES = 1 << 20


class WorkerProcess:
    """`batch` is what it works on; `deadline` is when it is to be killed (monotonic seconds)."""

    def __init__(self, module: str, start: dict[str, Any]) -> None:
        """Runs `python -m module` and sends it `start`, and its parent's process id."""
        package_root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            # its own group: Ctrl-C does not reach it, and a kill takes its children along
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.stdin, False)
        os.set_blocking(self.stdout, False)
        self.outgoing = b""
        self.incoming = b""
        self.ready = False
        self.batched = False
        self.whole_groups = False
        self.batch: list[int] = []
        self.deadline = time.monotonic() + BOOT_SECONDS
        self.queue({**start, "parent": os.getpid()})
        self.flush()  # it loads while nobody waits for it

    @property
    def idle(self) -> bool:
        return self.ready and not self.batch

    def queue(self, message: dict[str, Any]) -> None:
        self.outgoing += json.dumps(message, default=_jsonable).encode("ascii") + b"\n"

    def flush(self) -> None:
        """Write what the pipe takes. A broken pipe is left to the read side, which sees the end
        of file."""
        try:
            self.outgoing = self.outgoing[os.write(self.stdin, self.outgoing) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self.outgoing = b""

    def receive(self) -> dict[str, Any] | bool | None:
        """A whole reply; True when there is none yet; None when the worker is gone or talks
        nonsense."""
        try:
            data = os.read(self.stdout, 65536)
        except BlockingIOError:
            return True
        self.incoming += data
        line, newline, rest = self.incoming.partition(b"\n")
        if newline:
            self.incoming = rest
            try:
                reply = json.loads(line)
            except ValueError:
                return None
            return reply if isinstance(reply, dict) else None
        return None if not data or len(self.incoming) > _REPLY_LIMIT_BYTES else True

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        # a process in uninterruptible I/O must not hold us up
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)


def wait_for(
    workers: Sequence[WorkerProcess],
) -> tuple[dict[int, dict[str, Any] | None], list[int]]:
    """Sleep until a pipe of the workers that are not idle moves, or a deadline passes: (replies by
    worker, None where it is gone or talks nonsense; workers that are late)."""
    busy = [slot for slot, worker in enumerate(workers) if not worker.idle]
    if not busy:
        return {}, []
    with selectors.DefaultSelector() as selector:
        for slot in busy:
            selector.register(workers[slot].stdout, selectors.EVENT_READ, slot)
            if workers[slot].outgoing:
                selector.register(workers[slot].stdin, selectors.EVENT_WRITE, slot)
        patience = min(workers[slot].deadline for slot in busy) - time.monotonic()
        events = selector.select(max(0.0, patience))
    for key, mask in events:
        if mask & selectors.EVENT_WRITE:
            workers[key.data].flush()
    replies: dict[int, dict[str, Any] | None] = {}
    for slot in {key.data for key, mask in events if mask & selectors.EVENT_READ}:
        reply = workers[slot].receive()
        if not isinstance(reply, bool):
            replies[slot] = reply
    now = time.monotonic()
    return replies, [s for s in busy if s not in replies and workers[s].deadline <= now]


def _jsonable(value: Any) -> Any:
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)
