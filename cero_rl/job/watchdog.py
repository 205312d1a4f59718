"""No wait without an end: a phase that takes too long ends the process, with one line that says who
waited for what, and which configuration key allows more.

A collective that waits for a lost rank, or native code that hangs, cannot be interrupted from
Python; so a thread watches, and what it does is write all stacks to a file, print the error and
leave with the exit code of the phase. The other ranks' collectives then fail. Each wait has one
limit and one key: the innermost phase's.
"""

from __future__ import annotations

import faulthandler
import os
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from cero_rl import redact
from cero_rl.errors import CeroError, CheckpointError, EngineError, RewardError, first_line, tell

_EXIT_CODES = {"checkpoint": CheckpointError.exit_code, "reward": RewardError.exit_code}


@dataclass(frozen=True)
class Limit:
    """How long a phase may take, and the configuration key that holds the number."""

    seconds: float
    key: str


@dataclass(frozen=True)
class _Phase:
    name: str
    awaits: str
    since: float
    limit: Limit
    detail: Callable[[], str] | None

    def overdue(self) -> bool:
        return time.monotonic() - self.since > self.limit.seconds

    def message(self) -> str:
        detail = self.detail() if self.detail is not None else ""
        at = f" ({detail})" if detail else ""
        key = self.limit.key
        return (
            f"{self.name} took longer than {key} = {self.limit.seconds:g} s, waiting for "
            f"{self.awaits}{at}; a rank is lost or something hangs. Resume with --resume auto, or "
            f"raise {key}"
        )


class Watchdog:
    """Watches one rank's phases while it is entered as a context manager.

    stall_seconds holds for a phase that names no limit of its own. Stacks are written into
    `run_dir`, if there is one.
    """

    def __init__(self, stall_seconds: float, run_dir: Path | None = None) -> None:
        self._stall = Limit(stall_seconds, "watchdog.stall_seconds")
        self._run_dir = run_dir
        self._now: _Phase | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    @property
    def phase_name(self) -> str:
        return self._now.name if self._now is not None else "between steps"

    @contextmanager
    def phase(
        self,
        name: str,
        awaits: str,
        limit: Limit | None = None,
        *,
        detail: Callable[[], str] | None = None,
    ) -> Iterator[None]:
        """The block is `name`; while it lasts the rank waits for `awaits`, for at most the limit.

        `detail` says where it stands, should it run out. On an error the name stays.
        """
        before = self._now
        self._now = _Phase(name, awaits, time.monotonic(), limit or self._stall, detail)
        yield
        self._now = before

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self._stall.seconds / 4)):
            now = self._now
            if now is not None and now.overdue():
                code = _EXIT_CODES.get(now.name, EngineError.exit_code)
                leave(now.message(), code, self._run_dir)


def leave(message: str, exit_code: int, run_dir: Path | None) -> NoReturn:
    """Print one error line and end the process here and now, with the stacks of all threads in a
    file."""
    rank = os.environ.get("RANK", "0")
    if run_dir is not None:
        stacks = run_dir / f"stacks_rank{rank}.txt"
        try:
            with stacks.open("w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            message += f"; stacks in {stacks}"
        except OSError as error:
            message += f"; no stacks ({error})"
    tell(f"error (rank {rank}): {message}")
    os._exit(exit_code)


@contextmanager
def explained(watchdog: Watchdog, run_dir: Path) -> Iterator[None]:
    """Whatever a library raises (torch, a collective, the disk, transformers), and a mistake of our
    own, becomes one line that names the phase; the traceback goes to a file."""
    try:
        yield
    except CeroError:
        raise
    except Exception as error:
        where = run_dir / f"error_rank{os.environ.get('RANK', '0')}.txt"
        with suppress(OSError):
            where.write_text(redact.text(traceback.format_exc()), encoding="utf-8")
        place_in_torch = r"^\[\S+:\d+\] "
        words = re.sub(place_in_torch, "", first_line(error))
        raise EngineError(
            f"{watchdog.phase_name} failed ({type(error).__name__}: {words}); if another rank "
            f"ended, its own line says why. Traceback in {where}; go on with --resume auto"
        ) from error
