"""Faults on demand, to prove what a run survives: named points in the loop and in the commit,
no-ops unless CERO_FAULT names them.

    CERO_FAULT="learner.backward@rank=1,step=3:sigkill"
    CERO_FAULT="checkpoint.write:enospc*3; sync.before:sleep=20"

A fault is POINT[@rank=R][,step=S]:ACTION[*TIMES]; the rank defaults to every rank, the step to the
first time the point is reached, TIMES to 1. Actions: raise, enospc (no space left on device),
sigkill, sigstop, sigterm, sleep=SECONDS, nan (of a tensor), and for files truncate, flip (one bit),
zero (empty the file).
"""

from __future__ import annotations

import difflib
import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cero_rl.errors import ConfigError

VARIABLE = "CERO_FAULT"
POINTS = (
    "rollout.before",
    "episode.turn",
    "rollout.after",
    "reward.before",
    "counts.before",
    "evidence.booked",
    "learner.backward",
    "learner.before_step",
    "learner.after_step",
    "sync.before",
    "sync.after",
    "log.ledger",
    "log.evidence",
    "log.metrics",
    "log.cut",
    "step.end",
    "checkpoint.prepared",
    "checkpoint.write",
    "checkpoint.written",
    "checkpoint.manifest",
    "checkpoint.before_rename",
    "checkpoint.replacing",
    "checkpoint.renamed",
    "checkpoint.latest",
    "checkpoint.prune",
    "resume.set_aside",
    "resume.logs_cut",
    "finish.saved",
    "finish.evaluated",
    "finish.logged",
    "export.written",
)
POISONS = ("learner.loss", "learner.gradient")  # where a tensor can become nan
ACTIONS = (
    "raise",
    "enospc",
    "sigkill",
    "sigstop",
    "sigterm",
    "sleep",
    "nan",
    "truncate",
    "flip",
    "zero",
)
_FILE_ACTIONS = ("truncate", "flip", "zero")


@dataclass
class Fault:
    point: str
    rank: int | None
    step: int | None
    action: str
    seconds: float
    times: int  # how often it still fires


def _nearest(word: str, known: tuple[str, ...]) -> str:
    found = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {found[0]!r}?" if found else f"known are {', '.join(known)}"


def _number(text: str, kind: Callable[[str], Any], part: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"{VARIABLE}: {text!r} in {part!r} is no number") from None


def parse(text: str) -> list[Fault]:
    """The faults that `text` asks for. Raises ConfigError with the nearest known name."""
    found = []
    for part in filter(None, (p.strip() for p in text.split(";"))):
        where, colon, what = part.partition(":")
        if not colon:
            actions = ", ".join(ACTIONS)
            raise ConfigError(
                f"{VARIABLE}: {part!r} names no action, wanted "
                f"POINT[@rank=R,step=S]:ACTION; actions are {actions}"
            )
        point, _, conditions = where.partition("@")
        if point not in POINTS + POISONS:
            raise ConfigError(
                f"{VARIABLE}: unknown point {point!r}; {_nearest(point, POINTS + POISONS)}"
            )
        limits: dict[str, int] = {}
        for condition in filter(None, conditions.split(",")):
            key, _, value = condition.partition("=")
            if key not in ("rank", "step"):
                raise ConfigError(
                    f"{VARIABLE}: unknown condition {key!r} in {part!r}; known are rank, step"
                )
            limits[key] = _number(value, int, part)
        action, _, times = what.partition("*")
        action, _, seconds = action.partition("=")
        if action not in ACTIONS:
            raise ConfigError(f"{VARIABLE}: unknown action {action!r}; {_nearest(action, ACTIONS)}")
        wait, count = (
            _number(seconds, float, part) if seconds else 0.0,
            _number(times, int, part) if times else 1,
        )
        if (action == "nan") != (point in POISONS):
            raise ConfigError(
                f"{VARIABLE}: {part!r}: nan is the action of {', '.join(POISONS)}, and theirs alone"
            )
        found.append(Fault(point, limits.get("rank"), limits.get("step"), action, wait, count))
    return found


_faults: list[Fault] | None = None
_step = 0


def check() -> None:
    """Read CERO_FAULT now. Raises ConfigError if it cannot be understood."""
    global _faults
    _faults = parse(os.environ.get(VARIABLE, ""))


def at_step(step: int) -> None:
    """The step that is being worked on from here."""
    global _step
    _step = step


def _due(point: str) -> list[Fault]:
    if _faults is None:
        check()
    rank = int(os.environ.get("RANK", "0"))
    due = [
        f
        for f in _faults or ()
        if f.point == point and f.times > 0 and f.rank in (None, rank) and f.step in (None, _step)
    ]
    for fault in due:
        fault.times -= 1
    return due


def point(name: str, path: Path | None = None) -> None:
    """Do here what CERO_FAULT asks for. `path` is the file (or the folder, then its largest file)
    that can be damaged here."""
    for fault in _due(name):
        where = f"injected at {name}, step {_step}"
        if fault.action == "raise":
            raise RuntimeError(f"fault {where}")
        if fault.action == "enospc":
            raise OSError(errno.ENOSPC, f"No space left on device ({where})")
        if fault.action in ("sigkill", "sigstop", "sigterm"):
            os.kill(os.getpid(), getattr(signal, fault.action.upper()))
        elif fault.action == "sleep":
            time.sleep(fault.seconds)
        elif fault.action in _FILE_ACTIONS and path is not None:
            _damage(path, fault.action)


def poison(name: str, tensor: Any) -> Any:
    """`tensor`, or, where CERO_FAULT asks for nan here, the same times nan (so that its gradient is
    nan too)."""
    return tensor * float("nan") if _due(name) else tensor


def poison_gradient(name: str, tensor: Any) -> Any:
    """`tensor`, or, where CERO_FAULT asks for nan here, the same value with a gradient of nan."""
    return tensor + (tensor - tensor.detach()).abs().sqrt() if _due(name) else tensor


def _damage(path: Path, action: str) -> None:
    if path.is_dir():
        path = max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    if action == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes({"truncate": data[: len(data) // 2], "flip": data, "zero": b""}[action])
