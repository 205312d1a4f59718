"""Should the run stop at this step's edge? One rank's view of signals and of the job's time; the ranks agree on the largest code."""

from __future__ import annotations

from cero_rl.errors import EXIT_REQUEUE
from cero_rl.interrupt import Interrupt
from cero_rl.walltime import Walltime


class Stopping:
    """`code` is the exit code to stop with, 0 to go on. Told how long steps and saves take, it stops while one of each still fits."""

    def __init__(self, interrupt: Interrupt, walltime: Walltime | None) -> None:
        self._interrupt, self._walltime = interrupt, walltime
        self._longest_step_seconds = self._longest_save_seconds = 0.0

    def took(self, step_seconds: float, save_seconds: float) -> None:
        self._longest_step_seconds = max(self._longest_step_seconds, step_seconds)
        self._longest_save_seconds = max(self._longest_save_seconds, save_seconds)

    @property
    def code(self) -> int:
        if self._interrupt.exit_code is not None:
            return self._interrupt.exit_code
        if self._walltime is not None and self._walltime.should_stop(self._longest_step_seconds, self._longest_save_seconds):
            return EXIT_REQUEUE
        return 0
