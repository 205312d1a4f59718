"""How a process that may have joined a process group ends: with its own exit status, whatever
native threads still run.

Python's ordinary shutdown aborts a finished rank now and then (docs/decisions/0003), so the entry
points leave through here.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from cero_rl import redact


def run_and_exit(action: Callable[[], int]) -> NoReturn:
    """Run `action` and end the process with the status it returns; never returns, so call it from
    `__main__` alone.

    SystemExit gives its code, an uncaught error its traceback and 1. Exit handlers run, logs and
    standard streams are flushed; only the interpreter's own finalisation is left out, and only
    where torch was loaded.
    """
    try:
        status = action()
    except SystemExit as left:
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BrokenPipeError:  # whoever read the output has left, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    except BaseException:
        print(redact.text(traceback.format_exc()), end="", file=sys.stderr)
        status = 1
    if "torch" not in sys.modules:
        sys.exit(status)
    atexit._run_exitfuncs()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the reader of a pipe is gone
            stream.flush()
    os._exit(status)
