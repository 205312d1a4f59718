"""Nobody outlives whoever started it: a helper process ends with its parent, and a rank whose
launcher is gone saves and ends.

The kernel kills a helper (Linux's death signal; elsewhere it looks itself, once a second). A rank
looks itself in any case, since its launcher may be two processes away: of `deepspeed`, a SIGTERM
ends the outer one alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

LAUNCHER = "CERO_LAUNCHER"  # process id of `cero-rl launch`, in its ranks' environment
_PR_SET_PDEATHSIG = 1
_SECONDS = 1.0
_LAUNCHERS = ("deepspeed.launcher.launch", "torch.distributed.run", "torchrun")


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """This process, started by the process `parent`, gets this signal when that ends (in Linux:
    when the thread that started it ends); at once where it has ended already."""
    if not _kernel_kills(number):
        watch = threading.Thread(target=_watch, args=(parent, number), name="parent-watch")
        watch.daemon = True
        watch.start()
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def dies_with_me(number: int = signal.SIGKILL) -> Callable[[], None]:
    """die_with_parent for a process that this one starts: a `preexec_fn`, or an initializer."""
    return partial(die_with_parent, os.getpid(), number)


def _kernel_kills(number: int) -> bool:
    with contextlib.suppress(OSError, AttributeError):
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        return prctl(_PR_SET_PDEATHSIG, number) == 0
    return False


def _watch(parent: int, number: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS)
    os.kill(os.getpid(), number)


def parent_of(pid: int) -> int:
    """0 where there is no such process, or no /proc."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def launcher_chain() -> list[tuple[int, int]]:
    """(process, its parent) up to the launcher that a person started; empty where none that is
    known started this process."""
    me, parent = os.getpid(), os.getppid()
    if (launcher := os.environ.get(LAUNCHER, "")).isdigit():
        return [(me, int(launcher))]
    command = _command_of(parent)
    if not any(name in command for name in _LAUNCHERS):
        return []
    inner = command.find("deepspeed.launcher.launch") >= 0
    return [(me, parent), (parent, parent_of(parent))] if inner else [(me, parent)]


def watch_launcher() -> None:
    """From now on SIGTERM for this process once a link of its chain is broken."""
    chain = launcher_chain()
    if not chain or not Path("/proc/self/stat").exists():
        return

    def watch() -> None:
        while all(parent_of(pid) == parent for pid, parent in chain):
            time.sleep(_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()
