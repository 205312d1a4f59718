"""One job a run directory: an advisory lock that the system gives back when its holder ends,
however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from cero_rl.errors import ConfigError

LOCK = ".lock"


class RunLock:
    """Held until `release` or the end of the process. Raises ConfigError naming the holder if
    another job has it."""

    def __init__(self, run_dir: Path) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / LOCK
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = (
                os.read(self._handle, 200).decode(errors="replace").strip() or "another process"
            )
            os.close(self._handle)
            raise ConfigError(
                f"{run_dir}: another job works in it ({holder}); wait for it, or set another name"
            ) from None
        except OSError:
            pass  # a file system without locks
        job = os.environ.get("SLURM_JOB_ID")
        os.ftruncate(self._handle, 0)
        os.write(
            self._handle,
            f"process {os.getpid()} on "
            f"{os.uname().nodename}{f', job {job}' if job else ''}\n".encode(),
        )

    def release(self) -> None:
        os.close(self._handle)


def is_locked(run_dir: Path) -> bool:
    """Does a job work in this run's directory?"""
    try:
        handle = os.open(run_dir / LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
