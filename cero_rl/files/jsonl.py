"""JSON lines: append whole lines, read a file up to a step, cut it back to one.

A line is there whole or not at all, and a file is cut back by replacing it: a kill or a full disk
never leaves half of either.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cero_rl.files.durable import beside, replace
from cero_rl.job import faults


def _clean(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.8g}") if math.isfinite(value) else None
    return value


def append_jsonl(path: Path, *entries: Mapping[str, Any]) -> None:
    """Append a line for each entry. Raises OSError, with the file as it was before."""
    lines = [json.dumps({k: _clean(v) for k, v in entry.items()}) + "\n" for entry in entries]
    data = "".join(lines).encode()
    if not data:
        return
    with path.open("ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[file.write(data) :]
        except OSError as error:
            file.truncate(before)
            error.filename = str(path)
            raise


@dataclass(frozen=True)
class Cut:
    """A file's lines up to a step. steps: of the kept ones that have one. dropped: how many were
    of later steps, or cut off by a kill. foreign: numbers, from 1, of kept lines without a step."""

    kept: list[str]
    steps: list[int]
    dropped: int
    foreign: list[int]


def _step_of(line: str) -> int | None:
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None
    return step if isinstance(step, int) and not isinstance(step, bool) else None


def lines_up_to(path: Path, last_step: int) -> Cut:
    """The lines of `path` that no step after `last_step` wrote."""
    lines = path.read_bytes().decode("utf-8", "surrogateescape").split("\n")
    if not lines[-1]:
        lines.pop()
    kept: list[str] = []
    steps: list[int] = []
    foreign: list[int] = []
    dropped = 0
    for number, line in enumerate(lines, 1):
        step = _step_of(line)
        cut_off = step is None and number == len(lines)
        if cut_off or (step is not None and step > last_step):
            dropped += 1
            continue
        if step is None:
            foreign.append(number)
        else:
            steps.append(step)
        kept.append(line)
    return Cut(kept, steps, dropped, foreign)


def write_lines(path: Path, lines: list[str]) -> None:
    """Replace `path` atomically and durably."""
    temporary = beside(path, "".join(line + "\n" for line in lines))
    faults.point("log.cut")
    replace(path, temporary)
