"""The ranks of one machine as children of this process: started together, told every signal, waited
for, and ended together with one documented exit code.

Each rank is a session of its own, so that a terminal's Ctrl-C reaches it once, through here. After
a signal the ranks save; how long that may take is their watchdogs' affair, not this process's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType

from cero_rl.errors import EXIT_INTERRUPT, EXIT_NO_PROGRESS, EXIT_REQUEUE
from cero_rl.job.parent import LAUNCHER

_STOPPED = (EXIT_INTERRUPT, EXIT_REQUEUE)
_FAILED = (2, 3, 4, 5, 6, 7, EXIT_NO_PROGRESS)
_LINGER_SECONDS = 30.0  # for the other ranks, once one has failed; and after a second Ctrl-C
_POLL_SECONDS = 0.05
_PASSED_ON = {
    signal.SIGINT: signal.SIGINT,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGHUP: signal.SIGTERM,  # the terminal is gone, the run need not be
}


def worst_code(codes: Sequence[int]) -> int:
    """Of the ranks' return codes in the order they ended: the first documented failure, else the
    first undocumented one (128 + n for a signal n), else 130 or 75, else 0."""
    for kind in (
        lambda code: code in _FAILED,
        lambda code: code not in (0, *_STOPPED),
        lambda code: code != 0,
    ):
        for code in codes:
            if kind(code):
                return code if code >= 0 else 128 - code
    return 0


def environments(ranks: int, port: int) -> list[dict[str, str]]:
    """What each rank of one machine must know, in the names that torch and DeepSpeed read."""
    shared = {
        "WORLD_SIZE": str(ranks),
        "LOCAL_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "CROSS_RANK": "0",
        "CROSS_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        LAUNCHER: str(os.getpid()),
    }
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


class Ranks:
    """The running ranks; a context manager during which signals go to them."""

    def __init__(self, command: Sequence[str], own: Sequence[Mapping[str, str]]) -> None:
        """`own`: each rank's variables beside this process's."""
        self._command, self._own = command, own
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._previous: dict[int, object] = {}
        self._early: list[int] = []  # signals that came while ranks were being started
        self._started = False
        self._interrupts = 0
        self._deadline: float | None = None

    def __enter__(self) -> Ranks:
        for number in _PASSED_ON:
            self._previous[number] = signal.signal(number, self._pass_on)
        for rank, variables in enumerate(self._own):
            self._running[rank] = subprocess.Popen(
                self._command,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._started = True
        for number in self._early:
            self._send(number)
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            self._end_by(_LINGER_SECONDS)
        if self._started:
            self._send(number)
        else:  # for all of them, or some would wait for those that it ended
            self._early.append(number)

    def _send(self, number: int) -> None:
        for process in list(self._running.values()):
            process.send_signal(_PASSED_ON[signal.Signals(number)])

    def _end_by(self, seconds: float) -> None:
        if self._deadline is None:
            self._deadline = time.monotonic() + seconds

    def _kill(self) -> None:
        """Each with what it has started."""
        for process in self._running.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def wait(self) -> int:
        """Until all have ended; the exit code of the whole. Once a rank fails the others have 30 s
        to say what they met, then they are killed."""
        ended: list[int] = []
        while self._running:
            for rank, process in list(self._running.items()):
                if (code := process.poll()) is None:
                    continue
                del self._running[rank]
                ended.append(code)
                if code not in (0, *_STOPPED):
                    self._end_by(_LINGER_SECONDS)
                if code < 0:
                    name = signal.Signals(-code).name
                    print(f"error: rank {rank} was ended by {name}", file=sys.stderr, flush=True)
            if self._deadline is not None and time.monotonic() > self._deadline and self._running:
                late = ", ".join(map(str, self._running))
                print(f"error: rank(s) {late} did not end and are killed", file=sys.stderr)
                self._kill()
                break
            time.sleep(_POLL_SECONDS)
        return worst_code(ended)
