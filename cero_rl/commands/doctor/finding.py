"""What a check of the doctor says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    status: str  # ok | note: worth knowing | bad: a run will fail
    name: str
    text: str  # what was found and, unless ok, what to do
