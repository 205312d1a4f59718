"""Should the run stop at this step's edge? One rank's view of signals and of the job's time; the
ranks agree on the largest code."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType

from cero_rl.errors import EXIT_INTERRUPT, EXIT_REQUEUE, ConfigError

# Unix seconds; set by Slurm or by the job script
START, END = "SLURM_JOB_START_TIME", "SLURM_JOB_END_TIME"


@dataclass(frozen=True)
class Walltime:
    """A limit on the job. All times in seconds; `start` is Unix time."""

    limit_seconds: float
    margin_seconds: float  # kept free beside the next step and the save
    start: float

    def remaining_seconds(self, now: float | None = None) -> float:
        return self.start + self.limit_seconds - (time.time() if now is None else now)

    def should_stop(
        self, step_seconds: float, save_seconds: float = 0.0, now: float | None = None
    ) -> bool:
        """True if a step of this length and a save would not end before the limit. Ranks must
        agree on the answer."""
        return self.remaining_seconds(now) < step_seconds + save_seconds + self.margin_seconds


def find_walltime(
    limit_seconds: float | None, margin_seconds: float, environ: Mapping[str, str], now: float
) -> Walltime | None:
    """The tighter of a configured limit and the job's own end; None where there is neither.
    `now` stands for an unknown start."""
    start, end = _stamp(environ, START), _stamp(environ, END)
    start = now if start is None else start
    limits = [
        limit
        for limit in (limit_seconds, None if end is None else end - start)
        if limit is not None
    ]
    return Walltime(min(limits), margin_seconds, start) if limits else None


def _stamp(environ: Mapping[str, str], name: str) -> float | None:
    text = environ.get(name, "")
    if not text:
        return None
    if not text.isdigit():
        raise ConfigError(
            f"{name}: got {text!r}, wanted Unix seconds; unset it or set it to `date +%s`"
        )
    return float(text)


def leave_at_once(ended_with: int | None = None) -> None:
    """Until a run can save (`Interrupt`), SIGINT ends this process with 130, SIGTERM and SIGUSR1
    with 75: there is nothing yet to lose. Once it has `ended_with` a code, that is what they give.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        code = EXIT_INTERRUPT if number == signal.SIGINT else EXIT_REQUEUE
        if ended_with is not None:
            code = ended_with
        elif os.environ.get("RANK", "0") == "0":
            os.write(2, b"stopped before the first step; there was nothing to save\n")
        os._exit(code)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, leave)


class Interrupt:
    """Context manager. SIGINT asks for exit code 130, SIGTERM and SIGUSR1 for 75 (saved, start
    me again); the first one counts.

    A second Ctrl-C raises KeyboardInterrupt at once: the last committed checkpoint stays valid.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._ctrl_c = False  # was it asked for once?
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._ctrl_c:
            raise KeyboardInterrupt
        self._ctrl_c |= number == signal.SIGINT
        if self.exit_code is None:
            self.exit_code = EXIT_INTERRUPT if number == signal.SIGINT else EXIT_REQUEUE


class Stopping:
    """`code` is the exit code to stop with, 0 to go on. Told how long steps and saves take, it
    stops while one of each still fits."""

    def __init__(self, interrupt: Interrupt, walltime: Walltime | None) -> None:
        self._interrupt, self._walltime = interrupt, walltime
        self._longest_step_seconds = self._longest_save_seconds = 0.0

    def took(self, *, step_seconds: float = 0.0, save_seconds: float = 0.0) -> None:
        self._longest_step_seconds = max(self._longest_step_seconds, step_seconds)
        self._longest_save_seconds = max(self._longest_save_seconds, save_seconds)

    @property
    def code(self) -> int:
        if self._interrupt.exit_code is not None:
            return self._interrupt.exit_code
        if self._walltime is not None and self._walltime.should_stop(
            self._longest_step_seconds, self._longest_save_seconds
        ):
            return EXIT_REQUEUE
        return 0
