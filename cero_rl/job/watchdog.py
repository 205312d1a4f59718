"""No wait without an end: a phase that stands still for too long ends the process, with one line
that says who waited for what.

A collective that waits for a lost rank, or native code that hangs, cannot be interrupted from
Python; so a thread watches, and what it does is write all stacks to a file, print the error and
leave with the exit code of the phase. The other ranks' collectives then fail.
"""

from __future__ import annotations

import faulthandler
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from cero_rl import redact
from cero_rl.errors import CheckpointError, EngineError, RewardError


def _leave(message: str) -> None:
    print(f"error (rank {os.environ.get('RANK', '0')}): {message}", file=sys.stderr, flush=True)
    os._exit(EngineError.exit_code)


@contextmanager
def deadline(
    seconds: float, what: str, *, key: str, detail: Callable[[], str] | None = None
) -> Iterator[None]:
    """Run the block for at most `seconds`. `key` is the configuration key that holds them;
    `detail` says where it stands."""

    def expired() -> None:
        at = f" ({detail()})" if detail is not None else ""
        _leave(
            f"{what} took longer than {key} = {seconds:g} s{at}; a rank is lost or the "
            f"engine hangs. Resume, or raise {key}"
        )

    timer = threading.Timer(seconds, expired)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


_EXIT_CODES = {"checkpoint": CheckpointError.exit_code, "reward": RewardError.exit_code}


def leave_stuck(
    message: str, exit_code: int = EngineError.exit_code, stacks: Path | None = None
) -> NoReturn:
    """Print one error line, with the stacks of all threads in `stacks`, and end the process here
    and now."""
    if stacks is not None:
        try:
            with stacks.open("w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            message += f"; stacks in {stacks}"
        except OSError as error:
            message += f"; no stacks ({error})"
    print(f"error (rank {os.environ.get('RANK', '0')}): {message}", file=sys.stderr, flush=True)
    os._exit(exit_code)


class Watchdog:
    """Watches one rank's phases; use as a context manager. `limit_seconds` holds for a phase
    that names no limit of its own."""

    def __init__(self, limit_seconds: float, run_dir: Path) -> None:
        self._limit = limit_seconds
        self._stacks = run_dir / f"stacks_rank{os.environ.get('RANK', '0')}.txt"
        self._now: tuple[str, str, float, float] | None = None  # phase, awaited, since, limit
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    @property
    def phase_name(self) -> str:
        return self._now[0] if self._now is not None else "between steps"

    @contextmanager
    def phase(self, name: str, awaits: str, limit_seconds: float | None = None) -> Iterator[None]:
        """The block is `name`; while it lasts the rank waits for `awaits`, for at most the
        limit. On an error the name stays."""
        before = self._now
        self._now = (name, awaits, time.monotonic(), limit_seconds or self._limit)
        yield
        self._now = before

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self._limit / 4)):
            now = self._now
            if now is None:
                continue
            name, awaits, since, limit = now
            if time.monotonic() - since > limit:
                leave_stuck(
                    f"{name} stands still for more than {limit:g} s, waiting for {awaits}; "
                    "resume with --resume auto, or raise "
                    "watchdog.stall_seconds",
                    _EXIT_CODES.get(name, EngineError.exit_code),
                    self._stacks,
                )


@contextmanager
def explained(watchdog: Watchdog, run_dir: Path) -> Iterator[None]:
    """An error of torch, a collective or the disk becomes one line that names the phase; the
    traceback goes to a file."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        where = run_dir / f"error_rank{os.environ.get('RANK', '0')}.txt"
        with suppress(OSError):
            where.write_text(redact.text(traceback.format_exc()), encoding="utf-8")
        # the place in torch's source
        first = re.sub(
            r"^\[\S+:\d+\] ", "", (str(error).strip().splitlines() or [type(error).__name__])[0]
        )
        raise EngineError(
            f"{watchdog.phase_name} failed ({type(error).__name__}: {first}); if another "
            "rank ended, its own line says why. Traceback in "
            f"{where}; go on with --resume auto"
        ) from error
