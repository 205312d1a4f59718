"""attempts.jsonl: every start of a run and how it ended, and the brake on a job that starts
again and again and gets nowhere.

    {"attempt": 2, "start_step": 40, "time": "2026-01-31T12:00:00+00:00", "job_id": "118",
     "restart_count": 1, "host": "n1"}
    {"attempt": 2, "exit_code": 75, "time": "2026-01-31T13:58:10+00:00"}

A resume with changed settings says so: "changes": {"optimizer.learning_rate": [1e-05, 5e-06]}.
An attempt that was killed has no second line. Rank 0 alone writes the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

FILE = "attempts.jsonl"
MAX_RESTARTS_WITHOUT_PROGRESS = 3


@dataclass(frozen=True)
class Attempt:
    attempt: int  # from 1
    start_step: int  # the committed step it goes on from; 0: the beginning
    time: str  # ISO 8601, UTC
    job_id: str | None  # Slurm's; None outside
    restart_count: int  # Slurm's count of this job's requeues
    host: str
    exit_code: int | None = None  # None: still running, or killed
    # setting -> [was, is], of a resume that changed some
    changes: dict[str, list[Any]] | None = None


def next_attempt(
    earlier: Sequence[Attempt], start_step: int, *, environ: Mapping[str, str], host: str, time: str
) -> Attempt:
    count = environ.get("SLURM_RESTART_COUNT", "0")
    return Attempt(
        attempt=earlier[-1].attempt + 1 if earlier else 1,
        start_step=start_step,
        time=time,
        job_id=environ.get("SLURM_JOB_ID"),
        restart_count=int(count) if count.isdigit() else 0,
        host=host,
    )


def restarts_without_progress(earlier: Sequence[Attempt], this: Attempt) -> int:
    """How many attempts in a row, up to `this`, were restarts from the step that the one before
    them had started from.

    A person's new job, and an attempt that ended well, begin the count anew; starts by hand,
    outside a cluster's jobs, do not count.
    """
    if this.job_id is None:
        return 0
    count = 0
    for before in reversed(earlier):
        if (
            before.job_id != this.job_id
            or before.start_step != this.start_step
            or before.exit_code == 0
        ):
            break
        count += 1
    return count


def why_stop(earlier: Sequence[Attempt], this: Attempt, run_dir: Path) -> str | None:
    """One line if `this` is one restart too many; None if it may run."""
    count = restarts_without_progress(earlier, this)
    if count < MAX_RESTARTS_WITHOUT_PROGRESS:
        return None
    return (
        f"{run_dir}: {count} restarts in a row without a new committed step, all at step "
        f"{this.start_step}; read the log of the last "
        f"attempt, then submit a new job, or remove {run_dir / FILE} and start again"
    )


def read_attempts(run_dir: Path) -> list[Attempt]:
    """In order of their start. Unreadable lines, as a kill leaves them, are passed over."""
    found: list[Attempt] = []
    path = run_dir / FILE
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
            if "exit_code" in entry:
                found = [
                    replace(a, exit_code=int(entry["exit_code"]))
                    if a.attempt == entry["attempt"]
                    else a
                    for a in found
                ]
            else:
                found.append(
                    Attempt(
                        **{
                            **entry,
                            "attempt": int(entry["attempt"]),
                            "start_step": int(entry["start_step"]),
                        }
                    )
                )
        except (ValueError, TypeError, KeyError):
            continue
    return found


def write_attempts(run_dir: Path, attempts: Sequence[Attempt]) -> None:
    """Append the start of each attempt, and its exit code where it is known (the time of that
    end is not)."""
    for attempt in attempts:
        start = asdict(attempt)
        code = start.pop("exit_code")
        if start["changes"] is None:
            del start["changes"]
        _append(run_dir, start)
        if code is not None:
            _append(run_dir, {"attempt": attempt.attempt, "exit_code": code})


def write_end(run_dir: Path, attempt: Attempt, exit_code: int, time: str) -> None:
    _append(run_dir, {"attempt": attempt.attempt, "exit_code": exit_code, "time": time})


def _append(run_dir: Path, entry: Mapping[str, Any]) -> None:
    with (run_dir / FILE).open("ab") as file:
        if file.tell():
            # a line that a kill cut off must not swallow this one
            with (run_dir / FILE).open("rb") as written:
                written.seek(-1, os.SEEK_END)
                if written.read(1) != b"\n":
                    file.write(b"\n")
        file.write(json.dumps(dict(entry)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
