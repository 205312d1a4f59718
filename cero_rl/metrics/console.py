"""Rank 0's words to a person: plain lines, and one progress line."""

from __future__ import annotations

import math
import sys
import time
from typing import Any


class Console:
    """Rank 0's words to a person: plain lines, and one progress line (live on a terminal, now and
    then elsewhere)."""

    _PLAIN_EVERY_SECONDS = 15.0

    def __init__(self, active: bool, total_rollouts: int) -> None:
        self._active = active
        self._total = total_rollouts
        self._started = time.monotonic()
        self._start_spent: int | None = None
        self._last_plain = -math.inf
        self._progress: Any = None
        self._task: Any = None
        if active and sys.stdout.isatty():
            from rich.progress import BarColumn, Progress, TextColumn

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[status]}"),
            )
            self._task = self._progress.add_task("training", total=total_rollouts, status="")

    def say(self, text: str) -> None:
        if not self._active:
            return
        if self._progress is not None and self._progress.live.is_started:
            self._progress.console.print(text, highlight=False, markup=False)
        else:
            print(text, flush=True)

    def progress(
        self,
        step: int,
        spent_rollouts: int,
        *,
        reward: float,
        signal: str,
        tokens_per_second: float,
    ) -> None:
        """One line: step, reward, what share has `signal`, budget used, tokens a second, time left
        at the present pace."""
        if not self._active:
            return
        spent, now = spent_rollouts, time.monotonic()
        if self._start_spent is None:  # the first step is left out of the pace: it pays for warm-up
            self._start_spent, self._started = spent, now
        done = spent - self._start_spent
        left = (self._total - spent) * (now - self._started) / done if done else math.nan
        status = (
            f"step {step}  reward {reward:.3f}  {signal}  "
            f"budget {spent}/{self._total} ({spent / self._total:.0%})  "
            f"{tokens_per_second:.0f} tokens/s  ETA {_clock(left)}"
        )
        if self._progress is not None:
            if not self._progress.live.is_started:
                self._progress.start()
            self._progress.update(self._task, completed=spent, status=status)
        elif now - self._last_plain >= self._PLAIN_EVERY_SECONDS or spent == self._total:
            self._last_plain = now
            print(status, flush=True)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "--:--"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
