"""No wait without an end: a block that exceeds its time ends the process with one line that names what it waited for.

A collective that waits for a lost rank, or an engine that hangs in native code, cannot be interrupted from Python; so the watcher is a
thread, and what it does is print the error and leave with the exit status of an engine failure. The other ranks' collectives then fail.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cero_rl.errors import EngineError


def _leave(message: str) -> None:
    print(f"error (rank {os.environ.get('RANK', '0')}): {message}", file=sys.stderr, flush=True)
    os._exit(EngineError.exit_code)


@contextmanager
def deadline(seconds: float, what: str, *, key: str, detail: Callable[[], str] | None = None) -> Iterator[None]:
    """Run the block for at most `seconds`. `key` is the configuration key that holds them; `detail` says where it stands."""

    def expired() -> None:
        at = f" ({detail()})" if detail is not None else ""
        _leave(f"{what} took longer than {key} = {seconds:g} s{at}; a rank is lost or the engine hangs. Resume, or raise {key}")

    timer = threading.Timer(seconds, expired)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
