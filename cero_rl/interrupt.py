"""Signals become a wish to stop at the next step's edge, where all ranks agree, save and leave together."""

from __future__ import annotations

import signal
from types import FrameType

from cero_rl.errors import EXIT_INTERRUPT, EXIT_REQUEUE


class Interrupt:
    """Context manager. SIGINT asks for exit code 130, SIGTERM and SIGUSR1 for 75 (saved, start me again); the first one counts.

    A second Ctrl-C raises KeyboardInterrupt at once: the last committed checkpoint stays valid.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.exit_code == EXIT_INTERRUPT:
            raise KeyboardInterrupt
        if self.exit_code is None:
            self.exit_code = EXIT_INTERRUPT if number == signal.SIGINT else EXIT_REQUEUE
